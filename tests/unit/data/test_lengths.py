"""Counting: interrupted and continued, cached, in several processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from internvl_chat.config import DataConfig
from internvl_chat.data import lengths as module
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.encode import Encoder
from internvl_chat.data.length_journal import CountedChunk, LengthJournal
from internvl_chat.data.lengths import Lengths, token_lengths
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.processes import forked_map
from internvl_chat.errors import DatasetError
from tests.support import tokenizers
from tests.support.configs import data_config

NUM_RECORDS = 200


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_RECORDS", 16)


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    """Text records of different lengths; every 50th is bad, every 70th begins with an answer."""
    path = tmp_path / "a.jsonl"
    with open(path, "w") as handle:
        for number in range(NUM_RECORDS):
            turns = [{"from": "human", "value": "Q" * (number % 7)}]
            turns += [{"from": "gpt", "value": "A<img>" * (number % 5 + 1)}]
            if number % 50 == 3:
                turns = turns[:1]
            if number % 70 == 9:
                turns = [turns[1], *turns]
            handle.write(json.dumps({"conversations": turns}) + "\n")
    return path


def count(
    path: Path, *, num_processes: int = 1, first: int | None = None, **options: Any
) -> Lengths:
    config: DataConfig = data_config(meta_path="none", num_image_token=4, **options)
    spec = DatasetSpec(name="a", root="", annotation=str(path))
    encoder = Encoder(tokenizers.byte_level(), config.encode)
    file = AnnotationFile(path, first=first)
    return token_lengths(spec, file, encoder, config.media, num_processes=num_processes)


def as_values(found: Lengths) -> Any:
    reasons = [(number, str(err)) for number, err in found.bad]
    others = (found.num_truncated, found.num_dropped_leading_answers, found.warnings)
    return found.tokens.tolist(), found.tiles.tolist(), reasons, others


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_count_is_continued(
    annotation: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(own_cache / "whole"))
    whole = as_values(count(annotation))
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(own_cache / "interrupted"))
    fork = multiprocessing.get_context("fork")
    for _ in range(2):
        killed = fork.Process(target=_count_and_die, args=(annotation, 5, num_processes))
        killed.start()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
    counted = []
    original = module.RecordCounter.chunk
    monkeypatch.setattr(
        module.RecordCounter,
        "chunk",
        lambda self, first: counted.append(first) or original(self, first),
    )
    assert as_values(count(annotation)) == whole
    assert counted == list(range(2 * 5 * 16, NUM_RECORDS, 16))
    assert sorted(path.suffix for path in (own_cache / "interrupted").iterdir()) == [
        *(".json", ".lock", ".lock", ".npy", ".offsets")
    ]
    assert len(whole[2]) == 4
    assert whole[3] == (0, 3, {"IMG_TAG: the text holds a literal <img>": NUM_RECORDS - 4})


@pytest.mark.usefixtures("small_chunks")
def test_only_the_first_records_are_counted(
    annotation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    original = module.RecordCounter.chunk
    monkeypatch.setattr(
        module.RecordCounter,
        "chunk",
        lambda self, first: counted.append(first) or original(self, first),
    )
    some = count(annotation, first=40)
    assert counted == [0, 16, 32], "and not the other 160 records"
    whole = count(annotation)
    assert some.tokens.tolist() == whole.tokens[:40].tolist()
    assert [number for number, _ in some.bad] == [3]
    assert count(annotation, first=999).tokens.tolist() == whole.tokens.tolist()
    assert len(counted) == 3 + 13, "a limit that takes all is no limit"


def _count_and_die(path: Path, after_chunks: int, num_processes: int) -> None:
    left = [after_chunks]
    original = LengthJournal.append

    def append(self: LengthJournal, chunk: CountedChunk) -> None:
        original(self, chunk)
        left[0] -= 1
        if not left[0]:
            self._file.write(b"LEN1 half of the next")
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(LengthJournal, "append", append):
        count(path, num_processes=num_processes)


@pytest.mark.parametrize(
    ("options", "anew"),
    [
        ({"normalize_type": "clip"}, False),
        ({"image_backend": "fast"}, False),
        ({"force_image_size": 224}, False),  # a tile is a tile
        ({"dynamic_image_size": True}, True),
        ({"max_seq_length": 20}, True),
        ({"conv_style": "internlm2-chat"}, True),
        ({"max_num_frame": 9}, True),
    ],
)
def test_what_counts_are_kept_by(
    annotation: Path, own_cache: Path, options: dict[str, Any], anew: bool
) -> None:
    count(annotation)
    count(annotation, **options)
    assert len(list(own_cache.glob("*.npy"))) == 1 + anew


def test_the_size_of_a_tile_counts_where_images_are_cut(annotation: Path, own_cache: Path) -> None:
    for size in (224, 448):
        count(annotation, dynamic_image_size=True, force_image_size=size)
    assert len(list(own_cache.glob("*.npy"))) == 2


@pytest.mark.usefixtures("small_chunks")
def test_no_room_while_counting(annotation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(LengthJournal, "append", full)
        with pytest.raises(DatasetError, match=r"lengths.part: cannot be made: No space left"):
            count(annotation)
    assert len(count(annotation).tokens) == NUM_RECORDS


# -- the journal --------------------------------------------------------------------------------


def chunk(first: int, count: int) -> CountedChunk:
    values = np.arange(first, first + count, dtype=np.int32)
    bad = [(first, "CODE", "é", None)] if first % 2 else []
    return CountedChunk(first, values, values * 2, bad, first, 1, {"w": first})


def test_a_journal_that_was_cut_anywhere_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    whole = [chunk(0, 3), chunk(3, 2), chunk(5, 4)]
    ends = [0]
    with LengthJournal(path) as journal:
        for one in whole:
            journal.append(one)
            ends.append(path.stat().st_size)
    raw = path.read_bytes()
    for size in range(len(raw) + 1):
        path.write_bytes(raw[:size])
        kept = sum(end <= size for end in ends) - 1
        with LengthJournal(path) as journal:
            assert journal.num_records == [0, 3, 5, 9][kept]
            for one in whole[kept:]:
                journal.append(one)
            assert [_values(one) for one in journal.chunks()] == [_values(one) for one in whole]
    assert path.read_bytes() == raw


def test_a_damaged_entry_ends_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    with LengthJournal(path) as journal:
        for one in (chunk(0, 3), chunk(3, 2)):
            journal.append(one)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with LengthJournal(path) as journal:
        assert journal.num_records == 3


def _values(one: CountedChunk) -> Any:
    return {**vars(one), "tokens": one.tokens.tolist(), "tiles": one.tiles.tolist()}


# -- processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_processes", [1, 3])
def test_forked_map(num_processes: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    offset = [7]  # shared by forking; no pickle could carry it
    results = forked_map(lambda x: x * x + offset[0], items(), num_processes=num_processes)
    assert next(results) == 7
    assert len(taken) <= 4 * num_processes
    assert list(results) == [x * x + 7 for x in range(1, 100)]


def test_an_error_in_a_process_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise DatasetError("no", where="here", fix="Do.")
        return item

    with pytest.raises(DatasetError, match=r"here: no\. Do\."):
        list(forked_map(fail, range(9), num_processes=2))


def test_a_process_that_is_killed() -> None:
    def die(item: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(DatasetError, match="one of 2 processes died"):
        list(forked_map(die, range(9), num_processes=2))


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("fork").Process(target=_map_for_ever, args=(tmp_path,))
    parent.start()
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    left = [int(path.name) for path in tmp_path.iterdir()]
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if _runs(pid)]
        time.sleep(0.01)
    assert not left


def _map_for_ever(folder: Path) -> None:
    def work(item: int) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(60)

    list(forked_map(work, range(9), num_processes=2))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
