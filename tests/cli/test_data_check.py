"""``internvl-chat data check`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.cli import main
from tests.support.check_corpus import write_corpus
from tests.support.training import ROOT

TINY = str(ROOT / "pretrained" / "internvl-chat-tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(tmp_path / "cache"))


def check(*arguments: object) -> int:
    return main(["data", "check", *map(str, arguments)])


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "root": str(folder),
        "annotation": str(folder / "a.jsonl"),
        "data_augment": False,
        "repeat_time": 1,
        "length": len(rows),
    }
    (folder / "meta.json").write_text(json.dumps({"mine": entry}))
    return folder / "meta.json"


def row(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **fields}


def test_json_lists_all_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus", faulty=True)
    assert check(corpus.meta, "--decode", "--tokenizer", TINY, "--json") == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    places = {(one["file"], one["line"]) for one in found}
    # The tiny model's tokenizer counts otherwise than the corpus' long texts assume.
    assert {(file, line) for file, _, line in corpus.expected if line is not None} <= places | {
        (file, line) for (file, _, line), needs in corpus.needs.items() if needs == "tokens"
    }
    assert all(one["mend"] and one["severity"] in ("error", "warning") for one in found)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(write(tmp_path, row("q", "a"))) == 0
    table = capsys.readouterr().out
    assert "mine           1   1         0       0       -       0" in table
    assert table.endswith("0 errors, 0 warnings\n")
    assert check(write(tmp_path, row("q", "a", spilt=3))) == 0
    assert "UNKNOWN_KEY (warning, 1)" in capsys.readouterr().out
    assert check(write(tmp_path, row("q", ""))) == 1
    assert f"{tmp_path}/a.jsonl:1: EMPTY_ANSWER the answer in turn 1 is empty — Write" in (
        capsys.readouterr().out
    )
    (tmp_path / "empty.json").write_text("{}")
    assert check(tmp_path / "empty.json") == 1
    assert "META_FILE names no dataset" in capsys.readouterr().out
    assert check(tmp_path / "gone.json") == 2
    assert check(tmp_path) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_seq_lenght", "5"], "Did you mean --max_seq_length?"),
        (["--conv_style", "Hermes-3"], "Hermes-2"),
        (["--max_seq_length", "many"], "max_seq_length"),
        (["--tokenizer", "gone"], "no such directory"),
    ],
)
def test_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert check(write(tmp_path, row("q", "a")), *flags) == 2
    assert message in capsys.readouterr().err


def test_flags_of_training_and_a_checkpoints_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    meta = write(tmp_path, row("What is this?", "red", image="a.png"))

    def tokens(*flags: str) -> int:
        assert check(meta, "--tokenizer", TINY, *flags) == 0
        return int(capsys.readouterr().out.splitlines()[1].split()[-2])

    plain = tokens()  # 112 pixels, patches of 14, a quarter of them: 16 tokens a tile
    assert tokens("--force_image_size", "224") == plain + 64 - 16
    assert tokens("--dynamic_image_size", "True", "--max-dynamic-patch", "6") == plain + 5 * 16
    assert tokens("--max_seq_length=2000") == plain
    assert check(meta, "--tokenizer", TINY, "--max_seq_length", "20", "--json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "IMAGE_CUT"
    assert check(meta, "--max_image_pixels", "100", "--decode") == 1
    assert "TOO_MANY_PIXELS" in capsys.readouterr().out
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "b.png").symlink_to(tmp_path / "a.png")
    table = json.loads(meta.read_text())
    table["mine"]["root"] = str(tmp_path / "inside")
    meta.write_text(json.dumps(table))
    (tmp_path / "a.jsonl").write_text(json.dumps(row("q", "a", image="b.png")) + "\n")
    assert check(meta) == 0
    assert check(meta, "--strict_root") == 1
    assert "SYMLINK_ESCAPE" in capsys.readouterr().out


def test_fix_writes_beside_and_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = write(tmp_path, row("q", "a"), row("q", ""), row("q", "a</s>"), row("b", "c"))
    before = (tmp_path / "a.jsonl").read_bytes()
    out = tmp_path / "out"
    assert check(meta, "--fix", out) == 1
    told = capsys.readouterr().out
    assert "mine: 3 of 4 records kept; 1 EMPTY_ANSWER left out, 1 SENTENCE_MARK changed" in told
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert check(out / "meta.json") == 0
    assert check(meta, "--fix", out) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_preview_tells_remarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = write(tmp_path, row("q", "a", videos=["v.mp4"]))
    assert main(["data", "preview", str(meta), "--model", TINY]) == 0
    assert f'warning: {tmp_path}/a.jsonl:1: MEDIA_KEY: key "videos" is not read' in (
        capsys.readouterr().err
    )
