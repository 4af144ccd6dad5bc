from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.data import annotations, offsets
from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.errors import DatasetError


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"a":1}\n{"a":2}\n', [(b'{"a":1}', 1), (b'{"a":2}', 2)]),
        (b'{"a":1}\n{"a":2}', [(b'{"a":1}', 1), (b'{"a":2}', 2)]),
        (b'{"a":1}\n\n  \n{"a":2}\n\n', [(b'{"a":1}', 1), (b'{"a":2}', 4)]),
        (b'{"a":1}\r\n\r\n{"a":2}\r\n', [(b'{"a":1}\r', 1), (b'{"a":2}\r', 3)]),
        (b'\xef\xbb\xbf{"a":1}\n', [(b'{"a":1}', 1)]),
        ('{"a":"é\u2028"}\n'.encode(), [('{"a":"é\u2028"}'.encode(), 1)]),
    ],
)
def test_lines(tmp_path: Path, raw: bytes, expected: list[tuple[bytes, int]]) -> None:
    path = write(tmp_path / "a.jsonl", raw)
    file = AnnotationFile(path)
    assert len(file) == len(expected)
    for index, (text, line) in enumerate(expected):
        assert file.read(index) == (text, f"{path}:{line}")
        assert (file.line(index), file.where(index)) == (line, f"{path}:{line}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_the_first_records_of_a_file(tmp_path: Path, name: str) -> None:
    rows = [b'{"a":1}', b'{"a":2}', b'{"a":3}']
    raw = b"[" + b", ".join(rows) + b"]" if name.endswith(".json") else b"\n".join(rows)
    path = write(tmp_path / name, raw)
    file = AnnotationFile(path, first=2)
    assert (len(file), file.num_in_file) == (2, 3)
    assert [file.read(index)[0] for index in range(2)] == rows[:2]
    assert [raw for raw, _ in file.read_range(0, 2)] == rows[:2]
    with pytest.raises(IndexError, match="record 2 of 2"):
        file.read(2)
    assert len(pickle.loads(pickle.dumps(file))) == 2
    assert len(AnnotationFile(path, first=9)) == 3


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64])
def test_lines_that_cross_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(offsets, "_CHUNK_BYTES", chunk_bytes)
    rows = [json.dumps({"n": number, "x": "y" * number}) for number in range(30)]
    rows[3:3], rows[11:11] = ["", " \t\r", ""], [" " * 100]
    file = AnnotationFile(write(tmp_path / "a.jsonl", "\n".join(rows).encode()))
    kept = [(row.encode(), line) for line, row in enumerate(rows, 1) if row.strip()]
    assert [(file.read(i)[0], file.line(i)) for i in range(len(file))] == kept
    assert [raw for raw, _ in file.read_range(2, 9)] == [row for row, _ in kept[2:9]]


@given(
    raw=st.lists(st.sampled_from([b"{}", b"\n", b" ", b"\r\n", b"\t", b"a", b"\xff"])),
    chunk_bytes=st.integers(1, 9),
)
@settings(max_examples=300, deadline=None)
def test_any_lines(raw: list[bytes], chunk_bytes: int) -> None:
    text = b"".join(raw)
    expected = [(n, line) for n, line in enumerate(text.split(b"\n"), 1) if line.strip(b" \t\r")]
    with mock.patch.object(offsets, "_CHUNK_BYTES", chunk_bytes):
        assert indexed(text, is_array=False) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\,[]{}\n é\u2028', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\[}', max_size=3), inner)
    ),
    max_leaves=6,
)


@given(
    rows=st.lists(values, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    chunk_bytes=st.integers(1, 40),
)
@settings(max_examples=300, deadline=None)
def test_any_array(rows: list[Any], indent: int | None, chunk_bytes: int) -> None:
    text = f" \n{json.dumps(rows, indent=indent, ensure_ascii=False)}\n ".encode()
    with mock.patch.object(offsets, "_CHUNK_BYTES", chunk_bytes):
        found = indexed(text, is_array=True)
    assert [json.loads(raw) for _, raw in found] == rows
    first = 0
    for line, raw in found:  # each begins in the line that is told, behind the one before
        first = text.index(raw, first)
        assert line == 1 + text.count(b"\n", 0, first)
        first += len(raw)


@given(text=st.text('[]{},"\\ 1\n', max_size=30), chunk_bytes=st.integers(1, 8))
@settings(max_examples=500, deadline=None)
def test_no_array_is_taken_for_one(text: str, chunk_bytes: int) -> None:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        rows = None
    with mock.patch.object(offsets, "_CHUNK_BYTES", chunk_bytes):
        try:
            found = indexed(text.encode(), is_array=True)
        except DatasetError:
            assert not isinstance(rows, list)
            return
    if isinstance(rows, list):
        assert [json.loads(raw) for _, raw in found] == rows
    elif found:  # what is wrong lies within a record, and is seen when that is read
        with pytest.raises(json.JSONDecodeError):
            _ = [json.loads(raw) for _, raw in found]
    else:
        assert not text.strip()


def indexed(text: bytes, *, is_array: bool) -> list[tuple[int, bytes]]:
    """(line, bytes) of the records of a file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.json" if is_array else "a.jsonl")
        path.write_bytes(text)
        try:
            with mock.patch.dict("os.environ", INTERNVL_CHAT_CACHE=folder):
                file = AnnotationFile(path)
        except DatasetError as err:
            if "holds no record" in str(err):
                return []
            raise
        return [(file.line(i), file.read(i)[0]) for i in range(len(file))]


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    rows = [{"id": 1, "s": "a,\n]"}, {"id": 1, "s": "é"}, {"id": 1, "s": "é"}]
    raw = ("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]").encode()
    file = AnnotationFile(write(tmp_path / "a.json", raw))
    assert [json.loads(file.read(i)[0]) for i in range(3)] == rows
    assert [file.line(i) for i in range(3)] == [2, 3, 4]


def test_numbers_that_are_no_json_do_not_hide_an_array(tmp_path: Path) -> None:
    raw = b'[{"x": NaN}, {"x": -Infinity},\n {"x": Infinity}]'
    file = AnnotationFile(write(tmp_path / "a.json", raw))
    found = [file.read(i)[0] for i in range(3)]
    assert found == [b'{"x": NaN}', b'{"x": -Infinity}', b'{"x": Infinity}']


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: holds no record"),
        ("a.jsonl", b"\n \n", "holds no record"),
        ("a.json", b"[]", "holds no record"),
        ("a.json", b" \n", "holds no record"),
        (
            "a.json",
            b'\n{"a": 1}\n',
            "a.json:2: a .json annotation must be an array of records, but",
        ),
        ("a.json", b'[{"a": 1},\n{"a', "a.json:2: .*ends within a string, before the array does"),
        ("a.json", b'[{"a": 1},\n{"a": [', r"ends at depth 3, .*\(record 2 began\)"),
        ("a.json", b'[{"a": 1}\n,]', "a.json:2: .*a comma stands before its end"),
        ("a.json", b'[{"a": 1}}]', "a.json:1: .*a brace too many closes it"),
        ("a.json", b'[{"a": 1}]\n{}', "a.json:1: .*more stands behind its end"),
        ("a.jsonl", b"\xff\xfe{", "begins as UTF-16-LE, but is not valid: truncated data"),
    ],
)
def test_files_without_records(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        AnnotationFile(write(tmp_path / name, raw))
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("name", ["none.jsonl", "a\0b.jsonl", "n" * 300, "folder", "pipe"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="cannot be read: "):
        AnnotationFile(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_other_encodings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str, name: str
) -> None:
    rows = ['{"a": "é 图"}', '{"b": "\U0001f600"}']
    text = "\n\n".join(rows) if name == "a.jsonl" else "[" + ",\n\n".join(rows) + "]"
    path = write(tmp_path / name, text.encode(encoding))
    file = AnnotationFile(path)
    assert [file.read(i) for i in range(2)] == [
        (rows[0].encode(), f"{path}:1"),
        (rows[1].encode(), f"{path}:3"),
    ]
    assert file.encoding.startswith(encoding[:6])
    assert f"is in {encoding.upper()[:6]}" in caplog.text
    assert file.path == str(path)


def test_half_a_character_costs_its_line_only(tmp_path: Path) -> None:
    raw = '{"a": "?"}\n{"b": 1}'.encode("utf-16-le").replace(b"?\0", b"\x3d\xd8")
    file = AnnotationFile(write(tmp_path / "a.jsonl", raw))
    with pytest.raises(UnicodeDecodeError):
        file.read(0)[0].decode()
    assert file.read(1)[0] == b'{"b": 1}'


@pytest.mark.parametrize(
    "name", ["n" * 249 + ".jsonl", "图" * 83 + ".jsonl", os.fsdecode(b"caf\xe9.jsonl")]
)
def test_names_that_a_file_system_allows(tmp_path: Path, name: str) -> None:
    assert len(AnnotationFile(write(tmp_path / name, b'{"a":1}\n'))) == 1


def test_a_folder_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(folder / "cache"))
    write(folder / "a.jsonl", b'{"a":1}\n')
    assert len(AnnotationFile("a.jsonl")) == 1


# -- the sidecar --------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sidecars that are built in the test."""
    found: list[Path] = []
    original = annotations.build_offsets

    def build(source: int, partial: Path, **options: Any) -> None:
        found.append(partial)
        original(source, partial, **options)

    monkeypatch.setattr(annotations, "build_offsets", build)
    return found


def test_the_index_is_built_once_and_anew_when_the_file_changes(
    tmp_path: Path, built: list[Path]
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n')
    os.utime(path, ns=(5, 5))
    assert len(AnnotationFile(path)) == 1
    assert len(AnnotationFile(path)) == 1
    assert len(built) == 1
    path.write_bytes(b'{"a":1}\n{"a":2}\n')
    assert len(AnnotationFile(path)) == 2
    assert len(built) == 2
    write(path, b'{"a":1}\n       \n')
    os.utime(path, ns=(5, 5))
    assert len(AnnotationFile(path)) == 1
    # Of the same size and time as another: the content tells.
    write(path, b'{"a":1}\n"a":22\n\n')
    os.utime(path, ns=(5, 5))
    assert len(AnnotationFile(path)) == 2


@pytest.mark.parametrize("kept_bytes", [0, 10, 40])
def test_a_damaged_sidecar_is_made_anew(
    tmp_path: Path, own_cache: Path, built: list[Path], kept_bytes: int
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n' * 5)
    assert len(AnnotationFile(path)) == 5
    (sidecar,) = own_cache.glob("*.offsets")
    os.truncate(sidecar, kept_bytes)
    assert len(AnnotationFile(path)) == 5
    assert len(built) == 2


def test_what_a_killed_build_leaves_is_removed(tmp_path: Path, own_cache: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n' * 3)
    killed = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(path,))
    killed.start()
    killed.join()
    assert [entry.name for entry in own_cache.iterdir() if "partial" in entry.name]
    assert not list(own_cache.glob("a-*.offsets"))
    assert len(AnnotationFile(path)) == 3
    assert not [entry.name for entry in own_cache.iterdir() if "partial" in entry.name]


def _build_and_die(path: Path) -> None:
    def build(source: int, partial: Path, **options: Any) -> None:
        partial.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(annotations, "build_offsets", build):
        AnnotationFile(path)


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n' * 100)
    journal = tmp_path / "builders"
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_build_slowly, args=(path, journal)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * 4
    assert len(journal.read_text().split()) == 1


def _build_slowly(path: Path, journal: Path) -> None:
    original = annotations.build_offsets

    def build(source: int, partial: Path, **options: Any) -> None:
        with open(journal, "a") as handle:
            handle.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        original(source, partial, **options)

    with mock.patch.object(annotations, "build_offsets", build):
        assert len(AnnotationFile(path)) == 100


def test_a_cache_that_cannot_be_written_is_read(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, built: list[Path]
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n')
    assert len(AnnotationFile(path)) == 1
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert len(AnnotationFile(path)) == 1
    assert len(built) == 1
    assert not (tmp_path / "temporary").exists()


def test_no_room_for_the_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(annotations, "build_offsets", full)
    with pytest.raises(DatasetError, match=r"No space left.*INTERNVL_CHAT_CACHE"):
        AnnotationFile(write(tmp_path / "a.jsonl", b'{"a":1}\n'))


def test_memory_of_look_ups_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "_RELEASE_AFTER", 3)
    file = AnnotationFile(write(tmp_path / "a.jsonl", b'{"a":1}\n\n' * 20))
    assert [file.line(i) for i in range(20)] == list(range(1, 40, 2))
    assert [file.read(i)[0] for i in range(20)] == [b'{"a":1}'] * 20


# -- a file that changes while it is in use -----------------------------------------------------


def test_a_file_that_is_cut_short_or_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n{"a":2}\n')
    file = AnnotationFile(path)
    os.truncate(path, 9)
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"a.jsonl: changed while it was in use \(it had 16"):
            file.read(1)
    path.write_bytes(b'{"b":1}\n{"b":2}\n')
    with pytest.raises(DatasetError, match="changed while it was in use"):
        file.read(0)


def test_a_file_that_is_touched_or_appended_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n{"a":2}')
    file = AnnotationFile(path)
    os.utime(path, ns=(7, 7))
    assert file.read(1)[0] == b'{"a":2}'
    with open(path, "ab") as handle:
        handle.write(b'\n{"a":3}\n')
    assert [file.read(i)[0] for i in (1, 0)] == [b'{"a":2}', b'{"a":1}']
    assert caplog.text.count("was touched or appended to while in use") == 2
    assert len(file) == 2


def test_a_file_that_is_replaced_goes_on_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n')
    file = AnnotationFile(path)
    write(tmp_path / "b.jsonl", b'{"b":1}\n').rename(path)
    assert file.read(0)[0] == b'{"a":1}'
    with pytest.raises(DatasetError, match="changed while it was in use"):
        pickle.loads(pickle.dumps(file))


def test_travels_to_other_processes(tmp_path: Path) -> None:
    file = pickle.loads(pickle.dumps(AnnotationFile(write(tmp_path / "a.jsonl", b'{"a":1}\n'))))
    assert file.read(0)[0] == b'{"a":1}'


def test_an_unusable_cache_directory_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = write(tmp_path / "file", b"")
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(blocked / "below_a_file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(AnnotationFile(write(tmp_path / "a.jsonl", b'{"a":1}\n'))) == 1
    assert "is not writable" in caplog.text
