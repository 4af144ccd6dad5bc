"""Mutations of records, meta JSONs and texts with boxes, and what must hold for each.

``python -m tests.support.fuzz_data 10000`` runs as many of each by hand; a test runs a few hundred.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from internvl_chat.data import boxes
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.check.box_text import box_problems, holds_boxes, order_boxes
from internvl_chat.data.check.cleaning import Cleaner
from internvl_chat.data.check.codes import CODES
from internvl_chat.data.check.records import RecordChecker
from internvl_chat.data.check.repetition import is_repetitive
from internvl_chat.data.check.run import DataCheck
from internvl_chat.data.encode import Encoder
from internvl_chat.data.expand import expand_record
from internvl_chat.data.meta import DatasetSpec, load_meta, read_meta
from internvl_chat.data.schema import BadRecordError, Record, parse_record, read_record
from internvl_chat.errors import DatasetError
from internvl_chat.model.constants import IMAGE_TAG, VIDEO_TAG
from tests.support import tokenizers
from tests.support.check_corpus import VIDEO, copy, draw
from tests.support.configs import data_config, encode_config, image_config

SLOWEST_SECONDS = 2.0
"""For one mutation of a few kB: more is a hang, however busy the machine."""

_RECORDS: tuple[Any, ...] = (
    {
        "id": 7,
        "image": "a.jpg",
        "width": 640,
        "height": 480,
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {
                "from": "gpt",
                "value": "A <ref>cat</ref><box>[[1, 2, 30, 40]]</box> é [0.1, 0.2, 0.3, 0.4]",
            },
        ],
    },
    {
        "image": ["a.jpg", "b/c.png"],
        "width": [6, 7],
        "height": [8, 9],
        "system": "Be brief.",
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": "<image> and <image>: 比较一下"},
            {"role": "assistant", "content": "都是猫。", "loss": True},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "Yes, [1, 2]."},
        ],
    },
    {
        "video": "v.mp4",
        "clip": [0, 2.5],
        "length": 99,
        "conversations": [
            {"from": "gpt", "value": "Welcome"},
            {"from": "human", "value": "<video>\nWhat happens?"},
            {"from": "gpt", "value": "A ball falls."},
        ],
    },
)
_WORDS: tuple[bytes, ...] = tuple(
    word if isinstance(word, bytes) else word.encode("utf-8", "surrogatepass")
    for word in (
        *(
            "<image>",
            "<video>",
            "<IMG_CONTEXT>",
            "<|im_start|>",
            "<|im_end|>",
            "<img>",
            "</s>",
            "<s>",
        ),
        *(
            "<box>",
            "</box>",
            "[[",
            "]]",
            "[1, 2, 3, 4]",
            "<box>[[9,9,1,1]]</box>",
            "[0.9,0.1,0.2,0.3]",
        ),
        *("NaN", "-Infinity", "Infinity", "1e999", "-1", "0", "99999999999999999999", "1e-400"),
        *(
            "null",
            "true",
            "false",
            "{}",
            "[]",
            '""',
            '"',
            "\\",
            "\\u0000",
            "\\ud800",
            "\\udfff",
            "\x00",
        ),
        *("\ufeff", "\u2028", "\u202e", "\U0001f600", "é", "\ud800", b"\xff", b"\xc3", b"\x80"),
        *(
            "../",
            "/",
            "a\\u0000b",
            "loss",
            "weight",
            "videos",
            "image_path",
            "human",
            "gpt",
            "user",
        ),
        *(",", ":", "{", "}", "[", "]", "\n", "\r", "\t", " ", "USER: ", " ASSISTANT:", "[INST]"),
        *("### Instruction:", "### Response:", "<|user|>", "<start_of_turn>"),
    )
)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """A few random edits: bytes, words of the trade, pieces moved, doubled or cut."""
    text = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(text) + 1)
        edit = rng.randrange(8)
        if edit == 0 and text:
            text[at % len(text)] = rng.randrange(256)
        elif edit == 1:
            del text[at : at + rng.choice((1, 2, 5, 40))]
        elif edit == 2:
            text[at:at] = rng.choice(_WORDS)
        elif edit == 3:
            text[at:at] = rng.choice(_WORDS) * rng.choice((2, 9, 600))
        elif edit == 4:
            other = rng.randrange(len(text) + 1)
            text[at:at] = text[other : other + rng.randrange(60)]
        elif edit == 5:
            text[at : at + rng.randrange(12)] = rng.choice(_WORDS)
        elif edit == 6:
            text[at:at] = rng.choice((b"[", b'{"a":')) * rng.choice((5, 300, 2000))
        else:
            del text[at:]
    return bytes(text)


def changed(value: Any, rng: random.Random) -> Any:
    """The JSON value with one of its parts replaced, dropped or doubled: still valid JSON."""
    odd: tuple[Any, ...] = (
        *(
            None,
            True,
            False,
            0,
            -1,
            1.5,
            10**30,
            1e308,
            "",
            " ",
            "x",
            [],
            {},
            [[]],
            [None],
            {"a": 1},
        ),
        *(
            "<image>",
            "<video>",
            "a.mp4",
            "../a.jpg",
            "\0",
            "\ud800",
            "é" * 300,
            ["a.jpg", 3],
            "NaN",
        ),
    )
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        fate = rng.randrange(5)
        if fate == 0:
            return {k: v for k, v in value.items() if k != key}
        if fate == 1:
            return {
                (rng.choice(("videos", "loss", "Image", "x")) if k == key else k): v
                for k, v in value.items()
            }
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        fate = rng.randrange(5)
        if fate == 0:
            return value[:at] + value[at + 1 :]
        if fate == 1:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(odd)


def record_bytes(rng: random.Random) -> bytes:
    """A mutated record."""
    record = rng.choice(_RECORDS)
    for _ in range(rng.randrange(4)):
        record = changed(record, rng)
    raw = json.dumps(record, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutated(raw, rng) if rng.random() < 0.7 else raw


class RecordFuzzer:
    """Feeds mutated records to everything that reads one."""

    def __init__(self, folder: Path) -> None:
        path = folder / "rows.jsonl"
        path.write_text('{"conversations": []}\n')
        self._encoder = Encoder(
            tokenizers.byte_level(), encode_config(num_image_token=2, max_seq_length=500)
        )
        spec = {"name": "a", "annotation": str(path), "root": str(folder)}
        config = data_config(meta_path="m", num_image_token=2, max_seq_length=500)
        self._specs = [
            DatasetSpec(**spec, box_format=box)  # type: ignore[arg-type]
            for box in ("keep", "unit_to_1000", "pixel_to_1000")
        ]
        self._checkers = [
            RecordChecker(
                one,
                AnnotationFile(str(path)),
                dataset=0,
                media=config.media,
                marks={},
                encoder=self._encoder,
                decode=False,
            )
            for one in self._specs
        ]

    def __call__(self, rng: random.Random) -> str:
        raw = record_bytes(rng)
        number = rng.randrange(3)
        outcome = self._train(raw, number)
        found = self._checkers[number].examine(raw, "a.jsonl:1")
        codes = {code for code, _, _ in found}
        assert codes <= set(CODES), codes
        for code, message, mend in found:
            f"{code}{message}{mend}".encode()
        if outcome != "good":
            assert outcome in codes, f"training refuses it by {outcome}, the check says {codes}"
        return outcome

    def _train(self, raw: bytes, number: int) -> str:
        reading = read_record(raw, where="a.jsonl:1")
        try:
            record = parse_record(raw, where="a.jsonl:1")
        except BadRecordError as err:
            return err.code if str(err) == str(reading.problems[0]) else "another problem"
        assert reading.record == record
        holds(record)
        spec = self._specs[number]
        try:
            expanded = expand_record(
                record,
                spec,
                image_config(),
                sizes=record.sizes or ((64, 48),) * len(record.images),
                num_frames=3,
                where="a.jsonl:1",
            )
            encoded = self._encoder.encode(
                expanded.turns, expanded.num_tiles, system=record.system, where="a.jsonl:1"
            )
        except BadRecordError as err:
            return err.code if not record.images and not record.video else "good"
        assert len(encoded.input_ids) <= 500
        return "good"


def holds(record: Record) -> None:
    """What is true of every record that is accepted."""
    assert record.turns
    tags = sum(question.count(IMAGE_TAG) for question, _ in record.turns)
    assert tags == len(record.images)
    if record.video is not None:
        assert not record.images
        assert sum(question.count(VIDEO_TAG) for question, _ in record.turns) == 1
    for question, answer in record.turns:
        assert answer.strip()
        assert IMAGE_TAG not in answer
        for text in (question, answer, record.system or ""):
            text.encode()
            assert not any(mark in text for mark in ("<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"))
    for width, height in record.sizes or ():
        assert math.isfinite(width)
        assert math.isfinite(height)
        assert min(width, height) > 0
    if record.clip is not None:
        assert 0 <= record.clip[0] < record.clip[1] < math.inf


class MetaFuzzer:
    """Feeds mutated meta JSONs to what reads them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "rows.jsonl").write_text('{"conversations": []}\n')
        entry = {
            "root": str(folder),
            "annotation": str(folder / "rows.jsonl"),
            "data_augment": False,
            "repeat_time": 1.5,
            "length": "1",
            "max_samples": 4,
            "max_dynamic_patch": 6,
            "box_format": "keep",
            "weight": 2,
        }
        self._metas = ({"a": entry, "b": {**entry, "length": 3}}, {"数据": entry})

    def __call__(self, rng: random.Random) -> str:
        value: Any = rng.choice(self._metas)
        for _ in range(rng.randrange(4)):
            value = changed(value, rng)
        raw = json.dumps(value).encode()
        raw = mutated(raw, rng) if rng.random() < 0.6 else raw
        if rng.random() < 0.1:
            raw = raw.decode("utf-8", "replace").encode("utf-16")
        path = self._folder / "meta.json"
        path.write_bytes(raw)
        reading = read_meta(path)
        for problem in (*reading.problems, *reading.warnings):
            assert problem.code in CODES
            problem.sentence.encode()
        try:
            specs = load_meta(path)
        except DatasetError as err:
            str(err).encode()
            return "refused" if reading.problems else "refused without a reason"
        assert specs
        assert not reading.problems
        for spec in specs:
            assert spec.name.strip()
            assert math.isfinite(spec.repeat_time)
            assert spec.repeat_time > 0
            assert spec.length is None or spec.length >= 0
            assert spec.max_samples is None or spec.max_samples >= 1
            spec.num_samples(1000)
        return "good"


def fuzz_boxes(rng: random.Random) -> str:
    """A mutated text with boxes through everything that looks for them."""
    turns = rng.choice(_RECORDS[:2])
    text = json.dumps(turns) if rng.random() < 0.3 else ""
    text += rng.choice(
        (
            "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>",
            "[0.1, 0.25, .5, 1.0] and [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]",
            "<ref>a</ref><box>[[10,20,30,40]]</box> [10, 20, 30, 40]",
        )
    )
    text = mutated(text.encode(), rng).decode("utf-8", "replace")
    for pixels in (None, (64.0, 48.0)):
        found = list(box_problems(text, has_image=True, pixels=pixels))
        assert all(code in CODES and message for code, message in found)
        ordered = order_boxes(text, has_image=True, pixels=pixels)
        assert order_boxes(ordered, has_image=True, pixels=pixels) == ordered
        assert sorted(ordered) == sorted(text)
        again = [message for code, message in box_problems(ordered, has_image=True, pixels=pixels)]
        assert len(again) <= len(found)
    assert isinstance(holds_boxes(text), bool)
    assert isinstance(is_repetitive([text]), bool)
    unit = boxes.unit_to_1000(text)
    boxes.unit_to_1000(text, pad_size=(64, 48))
    boxes.pixel_to_1000(text, (64, 48))
    boxes.thousand_to_unit(text)
    return "boxes" if unit.num_boxes or found else "none"


def fuzz_whole_check(rng: random.Random, folder: Path, num_records: int) -> str:
    """Files of mutated records through the whole check and ``--fix``; the copy must be clean."""
    rows = [record_bytes(rng).replace(b"\n", b" ").replace(b"\r", b" ") for _ in range(num_records)]
    good = json.dumps({"conversations": _GOOD}).encode()
    draw(folder, "a.jpg", 0, (64, 48))
    draw(folder, "b/c.png", 0, (7, 9))
    copy(VIDEO, folder / "v.mp4")
    (folder / "a.jsonl").write_bytes(b"\n".join([*rows, good]) + b"\n")
    entry = {
        "root": str(folder),
        "annotation": str(folder / "a.jsonl"),
        "data_augment": False,
        "repeat_time": 1,
        "length": num_records + 1,
    }
    (folder / "meta.json").write_text(json.dumps({"a": entry}))
    tokenizer = tokenizers.byte_level()

    def config(meta: Path) -> Any:
        return data_config(meta_path=str(meta), num_image_token=2, max_seq_length=500)

    first = DataCheck(
        config(folder / "meta.json"), tokenizer=tokenizer, cleaner=Cleaner(folder / "out")
    )
    list(first.findings())
    again = DataCheck(config(folder / "out" / "meta.json"), tokenizer=tokenizer)
    errors = [one.as_text() for one in again.findings() if one.severity == "error"]
    assert errors == []
    return f"{again.datasets[0].counts.num_records} kept"


_GOOD = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def run_fuzz(target: Callable[[random.Random], str], count: int, *, seed: int) -> Counter[str]:
    """Run ``target`` on so many mutations; a failure names its seed.

    Returns:
        How often each outcome occurred.
    """
    outcomes: Counter[str] = Counter()
    for number in range(count):
        began = time.process_time()
        try:
            outcomes[target(random.Random(f"{seed}:{number}"))] += 1
        except Exception as err:
            raise AssertionError(f"mutation {seed}:{number}: {err!r}") from err
        seconds = time.process_time() - began
        assert seconds < SLOWEST_SECONDS, f"mutation {seed}:{number} took {seconds:.1f} s"
    return outcomes


def main(count: int) -> None:
    """Run ``count`` mutations of each kind."""
    logging.disable()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets: dict[str, Callable[[random.Random], str]] = {
            "records": RecordFuzzer(folder),
            "metas": MetaFuzzer(folder),
            "boxes": fuzz_boxes,
        }
        for what, target in targets.items():
            began = time.perf_counter()
            outcomes = run_fuzz(target, count, seed=1)
            print(f"{what}: {count} mutations in {time.perf_counter() - began:.0f} s: {outcomes}")
        rng = random.Random(1)
        for number in range(max(count // 1000, 1)):
            place = folder / f"check{number}"
            place.mkdir()
            print("whole check of 1000 mutated records:", fuzz_whole_check(rng, place, 1000))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
