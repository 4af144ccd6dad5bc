from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl_chat.data.check.cleaning import Cleaner
from internvl_chat.data.check.duplicates import HashRuns, dataset_and_record, place_of
from internvl_chat.data.check.report import Examples, as_json, counts_table
from internvl_chat.data.check.run import DataCheck
from tests.support.configs import data_config

Json = dict[str, Any]


def rows(first: int, count: int) -> list[Json]:
    return [
        {
            "id": number,
            "conversations": [
                {"from": "human", "value": f"What is {number}?"},
                {"from": "gpt", "value": f"A number, {number}."},
            ],
        }
        for number in range(first, first + count)
    ]


def write(path: Path, records: list[Json]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def entry(file: str, **changes: Any) -> Json:
    values: Json = {
        "root": "",
        "annotation": file,
        "data_augment": False,
        "repeat_time": 1,
        "length": 3,
    }
    values.update(changes)
    return {key: value for key, value in values.items() if value is not ...}


def check(meta: Path, **options: Any) -> DataCheck:
    return DataCheck(data_config(meta_path=str(meta), num_image_token=4), **options)


def told(run: DataCheck) -> list[tuple[str, str | None, str, int | None]]:
    return [(one.code, one.dataset, Path(one.file).name, one.line) for one in run.findings()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.jsonl", rows(0, 3))
    write(tmp_path / "b.jsonl", rows(10, 3))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"length": 4}, ["LENGTH_MISMATCH"]),
        ({"length": 2}, ["LENGTH_MISMATCH"]),
        ({"length": 0}, ["LENGTH_MISMATCH"]),
        ({"length": "30"}, ["LENGTH_MISMATCH"]),
        ({"length": "3"}, []),
        ({"length": ...}, ["META_ENTRY"]),
        ({"repeat_time": "2"}, ["META_ENTRY"]),
        ({"repeat_time": -1}, ["META_ENTRY"]),
        ({"data_augment": "false"}, ["META_ENTRY"]),
        ({"box_format": "pixel"}, ["META_ENTRY"]),
        ({"annotation": "gone.jsonl"}, ["ANNOTATION"]),
        ({"annotation": "a.txt"}, ["ANNOTATION"]),
        ({"annotation": "a.csv"}, ["ANNOTATION"]),
        ({"annotation": "empty.jsonl"}, ["ANNOTATION"]),
        ({"annotation": "object.json"}, ["ANNOTATION"]),
        ({"repeat_times": 2}, ["META_KEY"]),
        ({"num": 2, "lenght": 3}, ["META_KEY", "META_KEY"]),
    ],
)
def test_the_meta_is_told_and_the_rest_checked(
    folder: Path, changes: Json, codes: list[str]
) -> None:
    for name, text in {
        "a.txt": "x",
        "a.csv": "x",
        "empty.jsonl": "\n",
        "object.json": "{}",
    }.items():
        (folder / name).write_text(text)
    write(folder / "b.jsonl", [*rows(10, 2), {"conversations": []}])
    meta = folder / "meta.json"
    meta.write_text(json.dumps({"first": entry("a.jsonl", **changes), "second": entry("b.jsonl")}))
    findings = told(check(meta))
    where = {"ANNOTATION": {"meta.json", "empty.jsonl", "object.json"}}
    for code, dataset, file, line in findings[: len(codes)]:
        assert (dataset, line) == ("first", 1 if file == "object.json" else None)
        assert file in where.get(code, {"meta.json"})
    assert [code for code, *_ in findings] == [*codes, "SCHEMA"]
    assert findings[-1] == ("SCHEMA", "second", "b.jsonl", 3)


def test_what_max_samples_leaves_out_is_not_checked(folder: Path) -> None:
    write(folder / "a.jsonl", [*rows(0, 2), {"conversations": []}])
    meta = folder / "meta.json"
    meta.write_text(json.dumps({"first": entry("a.jsonl", max_samples=2)}))
    run = check(meta)
    assert told(run) == [], "its length is still that of the file"
    assert run.datasets[0].counts.num_ok == 2
    config = data_config(meta_path=str(meta), num_image_token=4, max_samples=1)
    run = DataCheck(config)
    assert told(run) == []
    assert run.datasets[0].counts.num_ok == 1, "of the two limits the smaller counts"
    cleaned = check(meta, cleaner=Cleaner(folder / "clean"))
    assert told(cleaned) == [("SCHEMA", "first", "a.jsonl", 3)], "a cleaned copy has all"
    copy = json.loads((folder / "clean/meta.json").read_text())["first"]
    assert (copy["length"], copy["max_samples"]) == (2, 2)


@pytest.mark.parametrize(
    ("text", "line"),
    [("", None), ("[]", None), ("{}", None), ('{"a": 1,\n]', 2), ('{"a": {}}\nx', 2)],
)
def test_a_meta_that_is_none(tmp_path: Path, text: str, line: int | None) -> None:
    (tmp_path / "meta.json").write_text(text)
    assert told(check(tmp_path / "meta.json"))[0][0] in ("META_FILE", "META_ENTRY")
    if line is not None:
        assert told(check(tmp_path / "meta.json")) == [("META_FILE", None, "meta.json", line)]
    assert told(check(tmp_path / "gone.json")) == [("META_FILE", None, "gone.json", None)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_read_and_told(folder: Path, encoding: str) -> None:
    records = rows(0, 3)
    records[2]["conversations"][1]["value"] = ""
    text = "\n".join(json.dumps(record) for record in records)
    (folder / "a.jsonl").write_bytes(text.encode(encoding))
    meta = folder / "meta.json"
    meta.write_bytes(json.dumps({"x": entry("a.jsonl")}).encode(encoding))
    assert told(check(meta)) == [
        ("UTF16", None, "meta.json", None),
        ("UTF16", "x", "a.jsonl", None),
        ("EMPTY_ANSWER", "x", "a.jsonl", 3),
    ]


def test_datasets_of_one_name_are_both_checked(folder: Path) -> None:
    write(folder / "b.jsonl", [*rows(10, 2), {"id": 1}])
    pair = f'{{"a": {json.dumps(entry("a.jsonl"))}, "a": {json.dumps(entry("b.jsonl"))}}}'
    (folder / "meta.json").write_text(pair)
    assert told(check(folder / "meta.json")) == [
        ("DUPLICATE_DATASET", "a", "meta.json", None),
        ("SCHEMA", "a", "b.jsonl", 3),
    ]


def test_duplicates_across_datasets_but_ids_within_one(folder: Path) -> None:
    again = rows(1, 1)[0]
    write(folder / "b.jsonl", [{**rows(11, 1)[0], "id": 7}, {**rows(12, 1)[0], "id": 7}, again])
    meta = folder / "meta.json"
    meta.write_text(json.dumps({"x": entry("a.jsonl"), "y": entry("b.jsonl")}))
    run = check(meta)
    assert told(run) == [
        ("DUPLICATE_RECORD", "y", "b.jsonl", 3),
        ("DUPLICATE_ID", "y", "b.jsonl", 2),
    ]
    assert [(one.counts.num_ok, one.counts.num_warned) for one in run.datasets] == [(3, 0), (1, 2)]


def test_many_processes_find_what_one_finds(folder: Path) -> None:
    many = rows(0, 6000)
    for number in (0, 1023, 1024, 3500, 5999):
        many[number]["conversations"][1]["value"] = ""
    many[4000] = {**many[17], "id": 4000}
    write(folder / "a.jsonl", many)
    meta = folder / "meta.json"
    meta.write_text(json.dumps({"x": entry("a.jsonl", length=6000)}))
    seen: list[int] = []
    run = check(meta, num_processes=2, progress=lambda name, done, total: seen.append(done))
    assert told(run) == told(check(meta, num_processes=1))
    assert told(check(meta, num_processes=2)) == [
        *(("EMPTY_ANSWER", "x", "a.jsonl", n + 1) for n in (0, 1023, 1024, 3500, 5999)),
        ("DUPLICATE_RECORD", "x", "a.jsonl", 4001),
    ]
    assert seen[-1] == 6000
    assert (run.num_errors, run.num_warnings) == (5, 1)


def test_hash_runs_against_a_dictionary(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs = HashRuns(tmp_path, run_rows=100)
    first: dict[bytes, int] = {}
    expected = []
    for dataset in range(3):
        for begin in range(0, 700, 70):
            hashes = [bytes(8) + int(v).to_bytes(8, "big") for v in rng.integers(0, 900, 70)]
            hashes = [h[8:] + h[:8] if h[-1] % 2 else h for h in hashes]
            runs.add(hashes, dataset=dataset, first=begin, missing=bytes(16))
            for number, one in enumerate(hashes):
                place = place_of(dataset, begin + number)
                if one == bytes(16):
                    continue
                if one in first:
                    expected.append((place, first[one]))
                first.setdefault(one, place)
    assert [tuple(pair) for pair in runs.duplicates()] == expected
    assert len(list(tmp_path.glob("run*"))) > 10
    assert dataset_and_record(place_of(5, 123)) == (5, 123)
    assert (
        list(HashRuns(tmp_path / "none").duplicates() if (tmp_path / "none").mkdir() else []) == []
    )


def test_the_report(folder: Path) -> None:
    write(folder / "b.jsonl", [{"id": n} for n in range(5)])
    meta = folder / "meta.json"
    meta.write_text(json.dumps({"x": entry("a.jsonl", spilt=1), "yy": entry("b.jsonl", length=5)}))
    run, examples = check(meta), Examples()
    lines = []
    for one in run.findings():
        examples.add(one)
        lines.append(json.loads(as_json(one)))
    assert counts_table([one.counts for one in run.datasets]) == (
        "dataset  records  ok  warnings  errors  tokens  images\n"
        "x              3   3         0       0       -       0\n"
        "yy             5   0         0       5       -       0\n"
        "all            8   3         0       5       -       0"
    )
    text = examples.as_text()
    assert text.index("SCHEMA (error, 5)") < text.index("META_KEY (warning, 1)")
    assert "… 2 more (--json lists all)" in text
    assert f'{folder}/b.jsonl:1: SCHEMA "conversations" is missing or empty — Give it' in text
    assert set(lines[0]) == {"code", "severity", "dataset", "file", "line", "message", "mend"}
    assert lines[0]["line"] is None
    assert [line["line"] for line in lines[1:]] == [1, 2, 3, 4, 5]
