from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.check.run import DataCheck
from internvl_chat.data.meta import DatasetSpec, load_datasets, load_meta, read_meta
from internvl_chat.data.mixture import Mixture
from internvl_chat.errors import DatasetError
from tests.support.configs import data_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "images").mkdir()
    return tmp_path


def entry(**changes: Any) -> dict[str, Any]:
    values = {
        "root": "images",
        "annotation": "train.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": 1,
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def write(folder: Path, value: object) -> Path:
    path = folder / "meta.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings(folder: Path, encoding: str) -> None:
    path = folder / "meta.json"
    path.write_bytes(json.dumps({"é 图": entry()}, ensure_ascii=False).encode(encoding))
    assert [spec.name for spec in load_meta(path)] == ["é 图"]


def test_reads_entries_in_order(folder: Path) -> None:
    specs = load_meta(write(folder, {"b": entry(), "a": entry(length="7", weight=2.5)}))
    assert [spec.name for spec in specs] == ["b", "a"]
    assert specs[0] == DatasetSpec(
        name="b", root="images", annotation="train.jsonl", length=1, repeat_time=1
    )
    assert (specs[1].length, specs[1].weight) == (7, 2.5)


@pytest.mark.parametrize(
    ("repeat_time", "num_records", "expected"),
    [(1, 7, 7), (0.5, 7, 3), (0.29, 100, 29), (0.1, 30, 3), (3, 7, 21), (1.5, 7, 10), (0.1, 5, 0)],
)
def test_repeat_time(repeat_time: float, num_records: int, expected: int) -> None:
    spec = DatasetSpec(name="a", root="", annotation="a", repeat_time=repeat_time)
    assert spec.num_samples(num_records) == expected


def test_paths_beside_the_meta_file_are_found_after_those_of_the_working_directory(
    folder: Path,
) -> None:
    beside = folder / "metas"
    beside.mkdir()
    (beside / "only_here.jsonl").write_text("{}\n")
    (beside / "train.jsonl").write_text("{}\n")
    (beside / "photos").mkdir()
    table = {
        "here": entry(annotation="only_here.jsonl", root="photos"),
        "both": entry(),
    }
    here, both = load_meta(write(beside, table))
    assert (Path(here.annotation), Path(here.root)) == (
        beside / "only_here.jsonl",
        beside / "photos",
    )
    assert both.annotation == "train.jsonl"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotation": ...}, 'entry "chartqa": key "annotation" is missing.'),
        (
            {"repeat_time": "2"},
            'entry "chartqa": repeat_time is "2", want a number > 0. Remove the quotes.',
        ),
        ({"repeat_time": 0}, 'entry "chartqa": repeat_time is 0, want a number > 0.'),
        (
            {"data_augment": "true"},
            'data_augment is "true", want true or false. Remove the quotes.',
        ),
        ({"data_augment": 1}, "data_augment is 1, want true or false."),
        ({"length": "many"}, 'length is "many", want a whole number >= 0'),
        ({"annotation": "gone.jsonl"}, 'annotation "gone.jsonl" does not exist'),
        ({"annotation": "images"}, 'annotation "images" is no file but a folder'),
        ({"root": 3}, "root is 3, want a path."),
        ({"max_samples": 0}, "max_samples is 0, want a whole number >= 1."),
        ({"max_samples": 0.5}, "max_samples is 0.5, want a whole number >= 1."),
        ({"max_samples": "9"}, 'max_samples is "9", want a whole number >= 1. Remove the quotes.'),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0, want a whole number >= 1."),
        ({"box_format": "pixels"}, "Did you mean 'pixel_to_1000'?"),
    ],
)
def test_a_wrong_entry_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = write(folder, {"chartqa": entry(**changes)})
    with pytest.raises(DatasetError) as caught:
        load_meta(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f'{path}: entry "chartqa": ')
    assert caught.value.exit_code == 3


def test_all_problems_are_reported_at_once(folder: Path) -> None:
    table = {"a": entry(root=..., repeat_time=-1), "b": [1], "c": entry(data_augment=None)}
    with pytest.raises(DatasetError) as caught:
        load_meta(write(folder, table))
    text = str(caught.value)
    assert "4 problems" in text
    assert 'entry "a": key "root" is missing' in text
    assert 'entry "a": repeat_time is -1' in text
    assert 'entry "b": is a JSON array' in text
    assert 'entry "c": data_augment is null' in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the meta file is empty"),
        ("{}", "names no dataset"),
        ("[]", "want an object of datasets, got a JSON array"),
        ('{"a": 1,\n}', "meta.json:2: not JSON"),
        ('{"a": {}, "a": {}}', 'two entries named "a"'),
        ('{"a": {"root": "x", "root": "y"}}', 'key "root" appears twice in one entry'),
    ],
)
def test_a_malformed_file(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=r"meta\.json") as caught:
        load_meta(write(folder, text))
    assert message in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such meta file"):
        load_meta(tmp_path / "none.json")


def test_an_unknown_key_draws_a_warning_with_the_nearest(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_meta(write(folder, {"a": entry(repeat_times=2)}))
    assert 'unknown key "repeat_times" is ignored; the nearest known key is "repeat_time"' in (
        caplog.text
    )


@pytest.mark.parametrize("key", ["max_sample", "num_samples", "maxSamples", "max_records"])
def test_an_almost_known_limit_is_suggested(folder: Path, key: str) -> None:
    (warning,) = read_meta(write(folder, {"a": entry(**{key: 2})})).warnings
    assert warning.problem.endswith(f'"{key}" is ignored; the nearest known key is "max_samples"')


@pytest.mark.parametrize(
    ("own", "of_run", "expected"),
    [(None, None, None), (None, 5, 5), (3, None, 3), (3, 5, 3), (5, 3, 3)],
)
def test_the_smaller_limit_counts(
    folder: Path, own: int | None, of_run: int | None, expected: int | None
) -> None:
    limit = {} if own is None else {"max_samples": own}
    meta = write(folder, {"a": entry(**limit)})
    config = data_config(meta_path=str(meta), num_image_token=4, max_samples=of_run)
    (spec,) = load_datasets(config)
    assert spec.max_samples == expected


@pytest.mark.parametrize(
    ("repeat_time", "problem"),
    [
        (0.01, "repeat_time 0.01 of 8 records leaves none"),
        (10**12, "makes 8000000000000 samples an epoch"),
        (0.125, None),
        (1, None),
    ],
)
def test_how_often_records_are_taken(
    tmp_path: Path, repeat_time: float, problem: str | None
) -> None:
    annotation = tmp_path / "rows.jsonl"
    annotation.write_text('{"conversations": []}\n' * 8)
    entry = {"root": "", "annotation": str(annotation), "data_augment": False, "length": 8}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"a": {**entry, "repeat_time": repeat_time}}))
    specs = read_meta(meta).specs
    check = DataCheck(data_config(meta_path=str(meta), num_image_token=4))
    found = [one for one in check.findings() if one.code == "META_ENTRY"]
    if problem is None:
        Mixture(specs)
        assert found == []
        return
    with pytest.raises(DatasetError, match=re.escape(problem)):
        Mixture(specs)
    assert [problem in one.message for one in found] == [True]


@pytest.mark.parametrize(("kind", "told"), [("folder", "a folder"), ("pipe", "a pipe")])
def test_an_annotation_that_is_no_file(tmp_path: Path, kind: str, told: str) -> None:
    annotation = tmp_path / "rows.jsonl"
    annotation.mkdir() if kind == "folder" else os.mkfifo(annotation)
    entry = {"root": "", "annotation": str(annotation), "data_augment": False, "length": 8}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"a": {**entry, "repeat_time": 1}}))
    (problem,) = read_meta(meta).problems
    assert f"is no file but {told}" in problem.problem
