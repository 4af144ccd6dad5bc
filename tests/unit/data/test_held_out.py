"""What ``--val_split`` holds out: how much, of what, and that nothing of it trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl_chat.config import HeldOutConfig
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.held_out import (
    HELD_OUT,
    HeldOutRecord,
    RecordPart,
    draw_held_out,
    read_held_out,
    write_held_out,
)
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.mixture import Mixture
from internvl_chat.data.same_media import MediaOfRecords, media_of_records
from internvl_chat.errors import ConfigError, DatasetError

Table = tuple[str, MediaOfRecords]


def shown(
    *media: int, root: str = "/data", links: Sequence[tuple[int, int]] = ()
) -> tuple[str, MediaOfRecords]:
    """A dataset whose records show these images."""
    pairs = np.array(links, dtype=np.uint64).reshape(-1, 2)
    return root, MediaOfRecords(np.array(media, dtype=np.uint64), pairs)


def drawn(*datasets: Table, amount: float, seed: int = 0) -> list[list[int]]:
    found = draw_held_out(datasets, HeldOutConfig(amount=amount, split_seed=seed))
    return [numbers.tolist() for numbers in found]


@pytest.mark.parametrize(
    ("num_records", "amount", "expected"),
    [
        (100, 0.02, 2),
        (100, 0.5, 50),
        (7, 0.02, 1),  # at least one
        (2, 0.02, 1),
        (2, 0.99, 1),  # and one is left to train on
        (1, 0.02, 0),
        (1, 5, 0),
        (100, 5, 5),
        (100, 1, 1),
        (8, 100, 4),  # a number is at most half
    ],
)
def test_how_many_a_dataset_gives(num_records: int, amount: float, expected: int) -> None:
    assert HeldOutConfig(amount=amount, split_seed=0).num_wanted(num_records) == expected
    assert len(drawn(shown(*range(num_records)), amount=amount)[0]) == expected


@pytest.mark.parametrize("amount", [-0.1, 2.5, 1e400, float("nan")])
def test_amounts_that_are_none(amount: float) -> None:
    with pytest.raises(ConfigError, match=r"--val_split .*: want a share of every dataset"):
        HeldOutConfig(amount=amount, split_seed=0)


def test_a_seed_that_is_none() -> None:
    with pytest.raises(ConfigError, match="--val_split_seed -1: want a whole number from 0"):
        HeldOutConfig(amount=0.1, split_seed=-1)


def test_the_seed_decides_and_nothing_else() -> None:
    a, b = shown(*range(1000, 1100)), shown(*range(2000, 2050))
    first = drawn(a, b, amount=0.1)
    assert drawn(a, b, amount=0.1) == first
    assert drawn(b, a, amount=0.1) == first[::-1], "the order of datasets"
    assert drawn(a, amount=0.1) == first[:1], "the other datasets"
    assert len({str(drawn(a, amount=0.1, seed=seed)) for seed in range(5)}) == 5
    # Written down: another choice would be another validation set for everybody.
    assert first == [[12, 30, 34, 35, 48, 49, 60, 70, 73, 96], [1, 3, 11, 25, 32]]


def test_records_of_an_image_stay_together() -> None:
    images = [number // 3 for number in range(90)]
    held_out = drawn(shown(*images), amount=9)[0]
    assert len(held_out) == 9
    assert len({images[number] for number in held_out}) == 3


def test_a_share_smaller_than_any_image_takes_the_smallest() -> None:
    images = [1] * 10 + [2] * 4 + [3] * 10
    assert drawn(shown(*images), amount=0.02) == [[10, 11, 12, 13]]
    assert drawn(shown(*[1] * 9, 2, 2), amount=0.02) == [[9, 10]]
    assert drawn(shown(*[1] * 9), amount=0.02) == [[]], "one image: no half without the other"


def test_images_of_one_record_stay_together() -> None:
    # 1-2 and 2-3 are shown together: 1, 2 and 3 are on one side.
    media = shown(1, 2, 3, 4, 5, 6, links=[(1, 2), (2, 3)])
    for seed in range(20):
        held_out = set(drawn(media, amount=3, seed=seed)[0])
        assert held_out & {0, 1, 2} in (set(), {0, 1, 2})
        assert len(held_out) == 3


def test_an_image_is_on_one_side_in_all_datasets_with_its_root() -> None:
    a, b = shown(*range(50), root="/x"), shown(*range(0, 50, 5), root="/x/")
    for seed in range(10):
        first, second = drawn(a, b, amount=5, seed=seed)
        assert {number * 5 for number in second} == {number for number in first if number % 5 == 0}
        assert len(second) >= 5
        assert drawn(b, a, amount=5, seed=seed) == [second, first]
    elsewhere = ("/y", b[1])  # files of the same names
    assert [len(one) for one in drawn(a, elsewhere, amount=5)] == [5, 5]


# ---- what a record shows --------------------------------------------------------------------


def write(path: Path, records: Sequence[dict[str, Any] | str]) -> AnnotationFile:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("\n".join(lines) + "\n")
    return AnnotationFile(path)


def turns(text: str = "hi") -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]


def test_what_records_show(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        [
            {"image": "a.jpg", "conversations": turns("one")},
            {"images": ["./a.jpg", "b.jpg"], "messages": turns("two")},
            {"id": 1, "conversations": turns("three")},
            {"id": 2, "conversations": turns("three")},
            {"video": "c.mp4", "clip": [0, 1], "conversations": turns()},
            {"video": "c.mp4", "clip": [1, 2], "conversations": turns()},
            "{broken",
            "[1]",
            '{"image": "\\ud800.jpg", "conversations": []}',
        ],
    )
    media = media_of_records(file)
    firsts = media.firsts.tolist()
    assert [firsts.index(one) for one in firsts] == [0, 0, 2, 2, 4, 4, 6, 7, 8]
    ((one, two),) = media.links.tolist()
    assert one == firsts[0]
    assert two not in firsts
    assert media_of_records(file).firsts.tolist() == firsts, "from the cache"


def test_many_processes_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        {"image": [f"{number // 2}.jpg", f"{number}.jpg"], "conversations": turns()}
        for number in range(40)
    ]
    alone = media_of_records(write(tmp_path / "a.jsonl", records))
    monkeypatch.setattr("internvl_chat.data.same_media._CHUNK_RECORDS", 7)
    monkeypatch.setattr("internvl_chat.data.same_media.usable_cores", lambda: 2)
    together = media_of_records(write(tmp_path / "b.jsonl", records))
    assert together.firsts.tolist() == alone.firsts.tolist()
    assert together.links.tolist() == alone.links.tolist()


# ---- parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [[], [0], [3], [6], [0, 1, 2], [1, 4, 5], [0, 2, 4, 6]])
def test_parts_of_a_dataset(held_out: list[int]) -> None:
    values = np.arange(7) * 10
    train = RecordPart(7, np.array(held_out, dtype=np.int64))
    left = [number for number in range(7) if number not in held_out]
    assert [train.record(place) for place in range(len(train))] == left
    assert train.of(values).tolist() == [number * 10 for number in left]
    other = RecordPart(7, train.held_out, is_held_out=True)
    assert [other.record(place) for place in range(len(other))] == held_out
    assert other.of(values).tolist() == [number * 10 for number in held_out]


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., DatasetSpec]:
    def make(name: str, num_records: int, **changes: Any) -> DatasetSpec:
        path = tmp_path / f"{name}.jsonl"
        write(path, [{"id": i, "conversations": turns(f"{name}{i}")} for i in range(num_records)])
        return DatasetSpec(name=name, root="", annotation=str(path), **changes)

    return make


@pytest.mark.parametrize("repeat_time", [0.5, 1, 2.5])
def test_no_held_out_record_trains_however_often_others_do(
    spec: Callable[..., DatasetSpec], repeat_time: float
) -> None:
    specs = [spec("a", 20, repeat_time=repeat_time), spec("b", 1), spec("c", 30, max_samples=10)]
    files = [AnnotationFile(one.annotation, first=one.max_samples) for one in specs]
    media = [(one.root, media_of_records(file)) for one, file in zip(specs, files, strict=True)]
    numbers = draw_held_out(media, HeldOutConfig(amount=0.2, split_seed=42))
    parts = [RecordPart(len(file), one) for file, one in zip(files, numbers, strict=True)]
    train = Mixture(specs, files, parts=parts)
    val = train.held_out([0, 2])
    assert train.num_samples == (int(repeat_time * 16), 1, 8)
    assert [len(one) for one in numbers] == [4, 0, 2], "a dataset of one record gives none"
    assert val.num_samples == (4, 2), "each once"
    trained = {train.read(index) for index in range(len(train))}
    held_out = {val.read(index) for index in range(len(val))}
    assert len(held_out) == 6
    assert not trained & held_out
    assert len(trained | held_out) == 20 + 1 + 10 - (repeat_time == 0.5) * 8
    tokens = [np.arange(len(file)) for file in files]
    named = val.held_out_records([tokens[0], tokens[2]])
    assert [one.line for one in named] == [number + 1 for one in numbers for number in one.tolist()]
    assert train.expand(tokens).tolist() == [train.locate(i)[1] for i in range(len(train))]
    assert val.expand([tokens[0], tokens[2]]).tolist() == [
        number for one in numbers for number in one.tolist()
    ]
    tokens[0][numbers[0][1]] = -1
    assert val.held_out_records([tokens[0], tokens[2]]) == [named[0], *named[2:]], "one is bad"


def test_the_file_that_names_them(tmp_path: Path) -> None:
    records = [
        HeldOutRecord("a", "data/a.jsonl", 3, 2, "0a"),
        HeldOutRecord("b\ud800", "b.jsonl", 1, 0, "0b"),
    ]
    path = tmp_path / HELD_OUT
    write_held_out(tmp_path, records)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "dataset": "a",
        "file": "data/a.jsonl",
        "line": 3,
        "record": 2,
        "digest": "0a",
    }
    assert lines[1]["line"] == 1
    assert read_held_out(path)[0] == records[0]
    write_held_out(tmp_path, [])
    assert not path.exists()
    for text in ("", "{", '{"id": 1}\n', json.dumps({**lines[0], "record": -1})):
        path.write_text(text)  # somebody's own file of that name
        write_held_out(tmp_path, [])
        assert path.read_text() == text
        with pytest.raises(DatasetError, match=r"held_out\.jsonl:1: does not name a record by"):
            read_held_out(path)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_record_is_known_by_its_place_and_its_bytes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"

    def write(*records: str) -> AnnotationFile:
        path.write_text(f"[{', '.join(records)}]" if ending == "json" else "\n".join(records))
        return AnnotationFile(path)

    texts = [json.dumps({"id": number}) for number in range(3)]
    named = HeldOutRecord.of("a", write(*texts), 1)
    assert (named.record, named.line) == (1, 1 if ending == "json" else 2)
    assert named.is_in(write(*texts, "{}")), "appended to"
    assert named.is_in(write("{}", texts[1])), "another one edited"
    assert not named.is_in(write("{}", *texts))
    assert not named.is_in(write(texts[0]))
