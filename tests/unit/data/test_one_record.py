"""One record never ends a run: whatever it, its pictures or its video raise, it is a bad record."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from internvl_chat.config import EncodeConfig
from internvl_chat.data import annotations, lengths, record_json
from internvl_chat.data import dataset as dataset_module
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.bad_record import READING_ERRORS, BadRecordError
from internvl_chat.data.build import build_train_dataset
from internvl_chat.data.check import records as check_records
from internvl_chat.data.check.run import DataCheck
from internvl_chat.data.convert import splitting
from internvl_chat.data.convert.files import decode_exactly, encode
from internvl_chat.data.convert.media import ImageRoot, shown_size
from internvl_chat.data.convert.notes import UnfitRecordError
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.encode import Encoder
from internvl_chat.data.json2jsonl import iterate_array
from internvl_chat.data.videos import process
from internvl_chat.errors import DatasetError
from tests.support import tokenizers
from tests.support.configs import data_config, encode_config

LIMIT_SECONDS = 120
"""For a test that waits for a pipe's other end or for a decoder."""
GOOD = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of things that are no pictures."""
    folder = tmp_path / "media"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    frames = [Image.new("RGB", (8, 8), (0, 0, 40 * number)) for number in range(5)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
    return folder


def build(root: Path, *lines: str | bytes, **flags: Any) -> tuple[SftDataset, DataCheck]:
    """Training's data and a check of a good record and these."""
    texts = [line if isinstance(line, bytes) else line.encode() for line in lines]
    annotation = root.parent / "a.jsonl"
    annotation.write_bytes(b"\n".join([json.dumps(GOOD).encode(), *texts]))
    entry = {"root": str(root), "annotation": str(annotation), "data_augment": False}
    meta = root.parent / "meta.json"
    entry |= {"repeat_time": 1, "length": len(texts) + 1}
    meta.write_text(json.dumps({"d": entry}))
    flags = {"max_bad_ratio": 1.0, "max_seq_length": 500, **flags}
    config = data_config(meta_path=str(meta), num_image_token=2, **flags)
    tokenizer = tokenizers.byte_level()
    data = build_train_dataset(config, tokenizer, output_dir=None, seed=0, num_processes=1)
    return data, DataCheck(config, tokenizer=tokenizer, decode=True, num_processes=1)


def load(data: SftDataset, record: int) -> None:
    raw, where = data.mixture.files[0].read(record)
    data.loader.load(raw, data.mixture.specs[0], where=where, rng=random.Random(0))


def about(key: str, value: object, **more: object) -> str:
    tag = "<video>" if key == "video" else "<image>"
    turns = [{"from": "human", "value": f"{tag}\nq"}, {"from": "gpt", "value": "a"}]
    return json.dumps({"conversations": turns, key: value, **more})


# ---- files --------------------------------------------------------------------------------------

ODD_PATHS = [
    *("pipe.png", "socket.png", "loop.png", "zero.png", "a\0b.png", "x" * 5000, "d/" * 3000 + "x"),
    *("good.png/x", "pipe.png/x", "loop.png/x", "photos.zip/x", "http://x/y.png", " ", "~", "\n"),
]


def test_odd_paths(root: Path) -> None:
    lines = [about(key, path) for path in ODD_PATHS for key in ("image", "video")]
    data, check = build(root, *lines, about("image", "folder.png"), about("video", "good.png"))
    for record in range(1, len(lines) + 3):
        with pytest.raises(BadRecordError):
            load(data, record)
    errors = {one.line for one in check.findings() if one.severity == "error"}
    assert errors == set(range(2, len(lines) + 4))


def test_a_file_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = build(root, about("image", "good.png"))
    monkeypatch.setattr(os, "open", _denied)
    with pytest.raises(BadRecordError, match="Permission denied"):
        data.loader._image("good.png", _record(data, 1), data.mixture.specs[0], "a:2")


def _record(data: SftDataset, number: int) -> Any:
    from internvl_chat.data.schema import parse_record

    raw, where = data.mixture.files[0].read(number)
    return parse_record(raw, where=where)


def _denied(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("#!/no/such/interpreter\n", "could not be started: No such file"),
        ("#!/bin/sh\nexit 3\n", "failed: exit code 3"),
        ("#!/bin/sh\necho it says so >&2\nkill -9 $$\n", "crashed (SIGKILL)"),
        ("#!/bin/sh\nkill -40 $$\n", "crashed (signal 40)"),
        ("#!/bin/sh\nread line; echo Welcome\n", "answered with other than JSON: b'Welcome"),
        ("#!/bin/sh\nread line; echo '{\"bytes\": 9}'\n", "failed: exit code 0"),
    ],
)
def test_a_decoders_helper_program_that_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    helper = root / "python"
    helper.write_text(program)
    helper.chmod(0o755)
    (root / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(99))
    monkeypatch.setattr(process, "_idle", {})
    monkeypatch.setattr(sys, "executable", str(helper))
    data, _ = build(root, about("video", "clip.mp4"))
    assert data.bad_samples.total == 1
    with pytest.raises(BadRecordError) as caught:
        load(data, 1)
    assert caught.value.code == "BROKEN_VIDEO"
    assert told in str(caught.value)


# ---- values -------------------------------------------------------------------------------------

DEEP = "[" * 900 + "]" * 900


def test_odd_values_never_end_a_run(root: Path) -> None:
    turns = json.dumps(GOOD)[:-1]
    lines = [
        *(f'{turns}, "{key}": {DEEP}}}' for key in ("x", "id", "image", "system", "width", "clip")),
        f'{{"conversations": {DEEP}}}',
        f'{{"conversations": [{{"from": {DEEP}, "value": {DEEP}}}]}}',
        DEEP,
        "[" * 100_000,
        turns + ', "x": ' + '{"a":' * 5000 + "1" + "}" * 5001,
        *(f'{turns}, "{key}": {"9" * 5000}}}' for key in ("length", "width", "id")),
        *(
            about("image", "good.png", width=width, height=height)
            for width, height in ((1e308, 5e-324), (2**63, 1), (-1, 0), (True, 1e300))
        ),
        *(
            about("video", "moving.gif", clip=clip)
            for clip in ([0, 1e308], [1e308, 1.7e308], [5e-324, 1e-323], [0, 2**63])
        ),
    ]
    flags = {"dynamic_image_size": True, "max_dynamic_patch": 6}
    data, check = build(root, *lines, **flags)
    codes = []
    for record in range(1, len(lines) + 1):
        try:
            load(data, record)
        except BadRecordError as err:
            codes.append(err.code)
    assert len(codes) > 9
    assert "UNREADABLE_RECORD" not in codes  # each has a reason of its own
    assert len(list(check.findings())) > 9


RAISED = [
    OSError(5, "Input/output error"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    OverflowError("int too large"),
    EOFError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    subprocess.CalledProcessError(1, ["gs"]),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda one: type(one).__name__)
def test_what_no_rule_foresees_is_a_bad_record_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def broken(raw: bytes, *, where: str) -> Any:
        if b"bad" in raw:
            raise raised
        return original(raw, where=where)

    original = lengths.parse_record
    monkeypatch.setattr(lengths, "parse_record", broken)
    monkeypatch.setattr(dataset_module, "parse_record", broken)
    data, check = build(root, json.dumps({**GOOD, "id": "bad"}))
    assert data.lengths[:2].tolist()[1] == -1
    told = f"a.jsonl:2: reading it failed: {type(raised).__name__}"
    with pytest.raises(BadRecordError, match=told):
        load(data, 1)
    original_reading = check_records.read_record

    def broken_reading(raw: bytes, *, where: str) -> Any:
        if b"bad" in raw:
            raise raised
        return original_reading(raw, where=where)

    monkeypatch.setattr(check_records, "read_record", broken_reading)
    found = [(one.line, one.code) for one in check.findings()]
    assert (2, "UNREADABLE_RECORD") in found
    assert (1, "UNREADABLE_RECORD") not in found


def test_our_own_mistakes_are_no_bad_records(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = build(root)

    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("ours")

    monkeypatch.setattr(dataset_module, "parse_record", broken)
    with pytest.raises(TypeError, match="ours"):
        load(data, 0)
    assert not any(issubclass(TypeError, one) for one in READING_ERRORS)


# ---- lines longer than any sample ---------------------------------------------------------------


class _Counting:
    """A tokenizer's text, measured on its way."""

    def __init__(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.characters = 0
        count, encode = encoder.tokens.count_batch, encoder.tokens.encode

        def counted(texts: Any) -> Any:
            self.characters += sum(map(len, texts))
            return count(texts)

        def encoded(text: str) -> Any:
            self.characters += len(text)
            return encode(text)

        monkeypatch.setattr(encoder.tokens, "count_batch", counted)
        monkeypatch.setattr(encoder.tokens, "encode", encoded)


def whole_encoder(config: EncodeConfig, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """One that tokenizes every text to its end."""
    found = Encoder(tokenizers.byte_level(), config)
    monkeypatch.setattr(found, "_shortened", lambda rendered, where: rendered)
    return found


@pytest.mark.parametrize(
    "turns",
    [
        [("q", "some words of an answer, " * 4_000)],
        [("q " * 50_000, "never learnt")],
        [("q", "a"), ("<image>\nq", "b"), ("q", "é" * 60_000)],
        [("q", " " * 30_000 + "x" * 60_000)],
    ],
    ids=["answer", "question", "rounds", "blanks"],
)
def test_the_end_of_a_long_text_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, turns: list[tuple[str, str]]
) -> None:
    config = encode_config(num_image_token=3, max_seq_length=50)
    short, whole = Encoder(tokenizers.byte_level(), config), whole_encoder(config, monkeypatch)
    counting = _Counting(short, monkeypatch)
    tiles = [2] if "<image>" in turns[-2 if len(turns) > 1 else -1][0] else []
    outcomes = []
    for encoder in (short, whole):
        try:
            encoded = encoder.encode(turns, tiles, where="a:1")
            rendered = encoder.render(turns, where="a:1")
            (length,) = encoder.lengths([rendered], [tiles], ["a:1"])
            outcomes.append((encoded.input_ids.tolist(), encoded.labels.tolist(), length))
        except BadRecordError as err:
            outcomes.append(err.code)
    assert outcomes[0] == outcomes[1]
    assert counting.characters < 80_000


def test_an_image_beyond_the_cut_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = encode_config(num_image_token=3, max_seq_length=50)
    short, whole = Encoder(tokenizers.byte_level(), config), whole_encoder(config, monkeypatch)
    for encoder in (short, whole):
        with pytest.raises(BadRecordError, match="cutting to 50 would remove image tokens"):
            encoder.encode([("q", "a " * 30_000), ("<image>", "b")], [1], where="a:1")


def test_a_line_of_more_than_any_sample_is_refused_unread(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 20_000
    for module in (record_json, lengths, check_records):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", limit)
    monkeypatch.setattr(annotations, "_READ_BYTES", 4000)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "word " * 90_000}]
    data, check = build(root, json.dumps({"conversations": turns}), json.dumps(GOOD))
    assert np.sign(data.lengths[:3]).tolist() == [1, -1, 1]
    read = [len(raw) for raw, _ in data.mixture.files[0].read_range(0, 3, most=limit + 1)]
    assert read == [len(json.dumps(GOOD)), limit + 1, len(json.dumps(GOOD))]
    found = [(one.line, one.code) for one in check.findings() if one.severity == "error"]
    assert found == [(2, "RECORD_TOO_LARGE")]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize("together", [1, 50, 200, 1 << 24])
def test_records_read_together_are_those_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, together: int
) -> None:
    monkeypatch.setattr(annotations, "_READ_BYTES", together)
    records = [json.dumps({"id": "x" * (number * 37 % 90)}) for number in range(40)]
    path = tmp_path / f"a.{ending}"
    path.write_text("\n".join(records) if ending == "jsonl" else f"[{', '.join(records)}]")
    file = AnnotationFile(path)
    assert list(file.read_range(3, 40)) == [file.read(number) for number in range(3, 40)]
    assert [raw.decode() for raw, _ in file.read_range(0, 40)] == records


# ---- other verbs of data -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipe.png", "socket.png", "zero.png", "folder.png", "loop.png"])
def test_converters_read_files_only(root: Path, name: str) -> None:
    with pytest.raises(UnfitRecordError, match="an image that cannot be read"):
        ImageRoot(root).read(name)
    with pytest.raises(DatasetError, match="a:1"):
        splitting._content(str(root / name), "a:1")
    assert shown_size(root / name) is None


@pytest.mark.parametrize(
    "text", ['{"id": ' + "9" * 5000 + "}", '{"id": ' + "[" * 100_000, '{"id": 1' + "]" * 9]
)
def test_converters_tell_json_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match="is no JSON that can be read"):
        decode_exactly(text.encode(), "a:1")
    array = tmp_path / "a.json"
    array.write_text(f"[{text}]")
    with pytest.raises(DatasetError, match="is no JSON"):
        list(iterate_array(array))


def test_what_is_nested_too_deeply_is_not_written() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(DatasetError, match="nested too deeply"):
        encode({"x": value, "half": "\ud800"})
