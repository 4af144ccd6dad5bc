"""``internvl-chat data report`` as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from internvl_chat.cli import main
from internvl_chat.data.report import run as report_run
from tests.support.report_corpus import EVIL, EVIL_NAME, FLAGS, NUM_BAD, NUM_GOOD, write_corpus


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(tmp_path / "cache"))
    write_corpus(tmp_path)
    return tmp_path


def run(folder: Path, *options: str, output: str = "new/report.html") -> int:
    return main(
        [
            *("data", "report", str(folder / "meta.json"), "-o", str(folder / output)),
            *("--tokenizer", str(folder / "tokenizer"), *FLAGS, *options),
        ]
    )


def samples_of(page: str) -> list[dict[str, object]]:
    lines = re.findall(r'<script type="application/json" class="sample-data">(.*)</script>', page)
    return [json.loads(line) for line in lines]


def test_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 0
    told = capsys.readouterr().out
    assert re.fullmatch(
        rf"{folder}/new/report\.html: {NUM_GOOD + 6} samples of 2 datasets, {NUM_BAD} bad records, "
        r"\d\.\d MB\. Open it in a browser\.\n",
        told,
    )
    page = (folder / "new/report.html").read_text("utf-8")
    samples = samples_of(page)
    assert {sample["dataset"] for sample in samples} == {EVIL_NAME, "plain"}
    # What an epoch takes: of the second dataset half.
    assert sum(sample["dataset"] == "plain" for sample in samples) == 6
    assert not any(evil in page for evil in (*EVIL, EVIL_NAME, "<b>&"))
    for line in (31, 32, 33, 34):
        assert f"{folder / 'boxes.jsonl'}:{line}" in page
    for code in ("EMPTY_ANSWER", "MISSING_FILE", "JSON", "SCHEMA"):
        assert f'<code class="code">{code}</code>' in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_same_seed_gives_the_same_page(folder: Path) -> None:
    pages = []
    for seed in ("1", "1", "2"):
        assert run(folder, "--samples", "5", "--seed", seed, output="a.html") == 0
        pages.append((folder / "a.html").read_text("utf-8"))
    assert pages[0] == pages[1] != pages[2]
    assert len(samples_of(pages[0])) == 5


def test_files_that_cannot_be_used_are_listed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "v.gif").write_bytes(b"")
    assert run(folder, "--dynamic_image_size", "False", output="a.html") == 0
    page = (folder / "a.html").read_text("utf-8")
    # One tile an image: counting opens videos only, the gallery finds the missing image.
    assert "Among the samples drawn for the gallery: 1 whose files cannot be used" in page
    assert f"{NUM_BAD + 1} bad records" in capsys.readouterr().out


def test_a_gallery_that_grows_too_large_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_run, "GALLERY_BYTES", 10_000)
    assert run(folder, output="a.html") == 0
    page = (folder / "a.html").read_text("utf-8")
    shown = len(samples_of(page))
    assert 0 < shown < NUM_GOOD
    assert f"{NUM_GOOD + 6 - shown} of the records drawn are left out" in page


def test_no_samples(folder: Path) -> None:
    assert run(folder, "--samples", "0", output="a.html") == 0
    assert samples_of((folder / "a.html").read_text("utf-8")) == []


def test_nothing_of_the_users_is_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.html").write_text("mine")
    assert run(folder, output="a.html") == 2
    assert "a.html exists and is no report. Name another file." in capsys.readouterr().err
    assert (folder / "a.html").read_text() == "mine"
    assert run(folder, output="b.html") == run(folder, output="b.html") == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--conv_stile", "x"], 2, "--conv_stile"),
        (["--conv_style", "Hermes"], 2, "Did you mean 'Hermes-2'"),
        (["--tokenizer", "nowhere"], 2, "nowhere: no such directory"),
        (["--samples", "-1"], 2, "--samples"),
    ],
)
def test_wrong_use(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    assert run(folder, *options) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert not (folder / "new").exists()


def test_a_tokenizer_is_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "report", str(folder / "meta.json")]) == 2
    assert "Give --model DIR or --tokenizer DIR." in capsys.readouterr().err
