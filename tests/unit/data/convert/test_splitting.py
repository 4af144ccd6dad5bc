"""Two halves without a common image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.data.convert.splitting import SplitReport, split_records
from internvl_chat.data.meta import load_meta
from internvl_chat.errors import ConfigError, DatasetError
from tests.unit.data.convert.common import Row, read_rows, write_rows

TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]


def record(images: list[str], **rest: Any) -> Row:
    return {"image": images[0] if len(images) == 1 else images, "conversations": TURNS, **rest}


def cut(source: Path, share: float = 0.1, seed: int = 0, by: str = "image") -> SplitReport:
    return split_records(source, None, share=share, seed=seed, by=by)


def images_of(path: Path) -> set[str]:
    found = set()
    for row in read_rows(path) if path.exists() else ():
        found |= set([row["image"]] if isinstance(row["image"], str) else row["image"])
    return found


def _is_one_group(rows: list[list[str]]) -> bool:
    seen, rest = set(rows[0]), rows[1:]
    while touching := [row for row in rest if seen & set(row)]:
        rest = [row for row in rest if not seen & set(row)]
        seen = seen.union(*touching)
    return not rest


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=3), min_size=2, max_size=30
    ),
    share=st.floats(0.05, 0.95),
    seed=st.integers(-5, 5),
)
def test_no_image_is_in_both_halves(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], share: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    source = write_rows(folder / "a.jsonl", [record(row, n=i) for i, row in enumerate(rows)])
    if _is_one_group(rows):
        with pytest.raises(DatasetError, match="cannot be parted"):
            cut(source, share, seed)
        return
    report = cut(source, share, seed)
    train, val = folder / "a.train.jsonl", folder / "a.val.jsonl"
    assert not images_of(train) & images_of(val)
    lines = (train.read_bytes() + val.read_bytes()).splitlines()
    assert sorted(lines) == sorted(source.read_bytes().splitlines())
    assert report.counts == {"a": {"train": len(read_rows(train)), "val": len(read_rows(val))}}
    assert load_meta(folder / "a.val.meta.json")[0].length == report.counts["a"]["val"] > 0


def test_the_share_is_met_and_the_seed_decides(tmp_path: Path) -> None:
    rows = [record([f"{i // 2}.png"], n=i) for i in range(2000)]
    halves = []
    for folder, seed, order in (("a", 0, 1), ("b", 0, -1), ("c", 1, 1)):
        source = write_rows(tmp_path / folder / "x.jsonl", rows[::order])
        report = cut(source, 0.1, seed)
        assert report.counts["x"] == {"train": 1800, "val": 200}
        assert report.num_groups == 1000
        halves.append(images_of(tmp_path / folder / "x.val.jsonl"))
    assert halves[0] != halves[2]
    source = write_rows(tmp_path / "d" / "x.jsonl", rows)
    assert cut(source, 50).counts["x"]["val"] == 50


def test_an_image_of_two_datasets_is_in_one_half(tmp_path: Path) -> None:
    entries = {}
    for name, root in (("one", "pics"), ("two", ".")):
        rows = [record([f"{i}.png" if name == "one" else f"pics/{i}.png"]) for i in range(40)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
        entries[name] = {
            "root": str(tmp_path / root),
            "annotation": str(tmp_path / f"{name}.jsonl"),
            "data_augment": name == "one",
            "repeat_time": 2,
            "length": 40,
            "box_format": "unit_to_1000",
        }
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    report = split_records(tmp_path / "meta.json", tmp_path / "out", share=0.25, seed=3, by="image")
    one, two = (images_of(tmp_path / "out" / f"{name}.val.jsonl") for name in ("one", "two"))
    assert {f"pics/{path}" for path in one} == two
    assert report.counts["one"] == {"train": 30, "val": 10}
    train = load_meta(tmp_path / "out" / "meta.train.json")
    assert [(spec.repeat_time, spec.box_format, spec.data_augment) for spec in train] == [
        (2, "unit_to_1000", True),
        (2, "unit_to_1000", False),
    ]
    val = load_meta(tmp_path / "out" / "meta.val.json")
    assert [(spec.repeat_time, spec.box_format, spec.data_augment) for spec in val] == [
        (1, "unit_to_1000", False),
        (1, "unit_to_1000", False),
    ]


def test_by_content_by_field_and_by_record(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(b"%d" % (number // 5))
    rows = [record([f"{i}.png"], patient=i % 2, n=i) for i in range(10)]
    source = write_rows(tmp_path / "a.jsonl", rows)
    out = {
        by: split_records(source, tmp_path / by, share=0.5, seed=0, by=by)
        for by in ("content", "patient", "record")
    }
    assert [report.num_groups for report in out.values()] == [2, 2, 1 + 9]
    val = [int(path[0]) // 5 for path in images_of(tmp_path / "content" / "a.val.jsonl")]
    assert len(val) == 5
    assert len(set(val)) == 1
    assert len({row["patient"] for row in read_rows(tmp_path / "patient" / "a.val.jsonl")}) == 1
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: has no field 'doctor'"):
        cut(source, by="doctor")
    (tmp_path / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"a\.jsonl:4: .*3\.png cannot be read"):
        split_records(source, tmp_path / "again", share=0.5, seed=0, by="content")


def test_refusals(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [record(["a.png"])] * 3)
    with pytest.raises(DatasetError, match="3 records of 1 group cannot be parted"):
        cut(source)
    with pytest.raises(ConfigError, match="is no share"):
        cut(source, 0)
    (tmp_path / "a.val.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        cut(source)
    assert (tmp_path / "a.val.jsonl").read_text() == "mine"
    assert not (tmp_path / "a.train.jsonl").exists()
