from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.check.cleaning import Cleaner
from internvl_chat.data.check.codes import check_of
from internvl_chat.data.check.report import as_json
from internvl_chat.data.check.run import DataCheck
from internvl_chat.errors import ConfigError, DatasetError
from tests.support import tokenizers
from tests.support.check_corpus import write_corpus
from tests.support.configs import data_config

Json = dict[str, Any]


def check(meta: Path, out: Path | None, *, full: bool = False) -> DataCheck:
    run = DataCheck(
        data_config(meta_path=str(meta), max_seq_length=1500, num_image_token=4),
        tokenizer=tokenizers.byte_level() if full else None,
        decode=full,
        cleaner=None if out is None else Cleaner(out),
    )
    run.found = list(run.findings())  # type: ignore[attr-defined]
    return run


def found(run: DataCheck) -> list[Any]:
    return run.found  # type: ignore[attr-defined, no-any-return]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("full", [False, True], ids=["text", "all"])
def test_the_cleaned_corpus_has_no_error(tmp_path: Path, full: bool) -> None:
    corpus = write_corpus(tmp_path / "corpus", faulty=True)
    before = digests(tmp_path / "corpus")
    first = check(corpus.meta, tmp_path / "out", full=full)
    assert digests(tmp_path / "corpus") == before
    again = check(tmp_path / "out" / "meta.json", None, full=full)
    assert [one for one in found(again) if one.severity == "error"] == []
    assert "DUPLICATE_RECORD" not in {one.code for one in found(again)}
    assert "BOX_INVERTED" not in {
        one.code for one in found(again) if "[5, 6, 5, 9]" not in one.message
    }
    changes = [json.loads(line) for line in (tmp_path / "out" / "changes.jsonl").open()]
    errors = {(one.file, one.line) for one in found(first) if one.severity == "error"}
    told = {(change["file"], change["line"]) for change in changes}
    assert errors <= told
    kept = sum(one.counts.num_records for one in again.datasets)
    left_out = {(c["file"], c["line"]) for c in changes if c["action"] == "left out"}
    assert kept == sum(one.counts.num_records for one in first.datasets) - len(left_out)
    assert kept > 100


def test_a_clean_corpus_is_copied_as_it_is(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", faulty=False)
    check(corpus.meta, tmp_path / "out")
    assert (tmp_path / "out" / "changes.jsonl").read_bytes() == b""
    written = (tmp_path / "out" / "lines.jsonl").read_bytes()
    assert written == (tmp_path / "corpus" / "lines.jsonl").read_bytes()
    array = json.loads((tmp_path / "corpus" / "array.json").read_text())
    lines = (tmp_path / "out" / "array.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == array


def write(folder: Path, rows: list[Json], **entry: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    values = {
        "root": str(folder),
        "annotation": str(path),
        "data_augment": False,
        "repeat_time": 1,
        "length": len(rows),
    }
    meta = folder / "meta.json"
    meta.write_text(json.dumps({"mine": {**values, **entry}}))
    return meta


def turns(*texts: str) -> list[Json]:
    roles = ("human", "gpt")
    return [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"conversations": [{"from": "User", "value": "q"}, {"from": "GPT-4", "value": "a"}]},
            {"conversations": turns("q", "a")},
        ),
        ({"conversations": turns("q", "a", "b")}, {"conversations": turns("q", "a")}),
        (
            {"image": ["a.png", "a.png"], "conversations": turns("<image> q", "a")},
            {"image": ["a.png", "a.png"], "conversations": turns("<image>\n<image> q", "a")},
        ),
        (
            {"image": "a.png", "conversations": turns("<image>\nq", "a", "<image>\nb", "c")},
            {"image": "a.png", "conversations": turns("<image>\nq", "a", "b", "c")},
        ),
        (
            {"image": "a.png", "conversations": turns("q", "a <image>")},
            {"image": "a.png", "conversations": turns("q", "a")},
        ),
        (
            {"image": "a.png", "conversations": turns("q", "<box>[[9, 2, 3, 40]]</box>")},
            {"image": "a.png", "conversations": turns("q", "<box>[[3, 2, 9, 40]]</box>")},
        ),
        ({"conversations": turns("q", "a</s>")}, {"conversations": turns("q", "a")}),
        ({"conversations": turns("q", "a<|im_end|>")}, {"conversations": turns("q", "a")}),
    ],
)
def test_what_is_clear_is_mended(tmp_path: Path, row: Json, expected: Json) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 600)
    run = check(write(tmp_path, [row]), tmp_path / "out")
    (line,) = (tmp_path / "out" / "mine.jsonl").read_text().splitlines()
    assert json.loads(line) == expected
    assert "changed" in run.summary
    changes = [json.loads(line) for line in (tmp_path / "out" / "changes.jsonl").open()]
    assert {(change["line"], change["action"]) for change in changes} == {(1, "changed")}
    assert all(check_of(change["code"]).what for change in changes)


def test_the_new_meta_holds_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good: Json = {"conversations": turns("q", "a")}
    write(tmp_path / "data", [good, good, {"conversations": []}], length=9, repeat_time=2)
    monkeypatch.chdir(tmp_path / "data")
    meta = json.loads(Path("meta.json").read_text())
    entry = {**meta["mine"], "root": "", "annotation": "rows.jsonl", "box_format": "unit_to_1000"}
    Path("meta.json").write_text(f'{{"a/b": {json.dumps(entry)}, "a/b": {json.dumps(entry)}}}')
    run = check(Path("meta.json"), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    table = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert list(table) == ["a/b"]  # the second one's records are the first one's
    assert table["a/b"] == {
        "root": str(tmp_path / "data"),
        "annotation": str(tmp_path / "out" / "a_b.jsonl"),
        "data_augment": False,
        "repeat_time": 2,
        "length": 1,
        "box_format": "unit_to_1000",
    }
    assert "a/b-2: 0 of 3 records kept" in run.summary or "0 of 3" in run.summary
    changes = [json.loads(line) for line in (tmp_path / "out" / "changes.jsonl").open()]
    assert {"DUPLICATE_DATASET", "LENGTH_MISMATCH", "SCHEMA", "DUPLICATE_RECORD"} <= {
        change["code"] for change in changes
    }


def test_a_working_folder_whose_name_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    row: Json = {"image": "a.png", "conversations": turns("q", "a")}
    folder.mkdir()
    rows = [row, {"image": "b.png", "conversations": turns("q", "a")}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (folder / "a.png").write_bytes(b"x" * 600)
    entry = {"root": "", "annotation": "rows.jsonl", "data_augment": False, "repeat_time": 1}
    monkeypatch.chdir(folder)
    Path("meta.json").write_text(json.dumps({"mine": {**entry, "length": 2}}))
    run = check(Path("meta.json"), Path("out"))
    (one,) = found(run)
    assert (one.code, one.line) == ("MISSING_FILE", 2)
    assert "caf\\udce9" in one.message
    as_json(one)
    assert found(check(Path("out/meta.json"), None)) == []


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        Cleaner(tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing is left to train on"):
        check(write(tmp_path, [{"conversations": []}]), tmp_path / "out")
