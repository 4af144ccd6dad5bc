from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from internvl_chat.data import annotations
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


def test_lines_that_cross_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "_CHUNK_BYTES", 7)
    rows = [json.dumps({"n": number, "x": "y" * number}) for number in range(30)]
    file = AnnotationFile(write(tmp_path / "a.jsonl", "\n".join(rows).encode()))
    assert [file.read(i)[0].decode() for i in range(len(file))] == rows


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    rows = [{"id": 1, "s": "a,\n]"}, {"id": 1, "s": "é"}, {"id": 1, "s": "é"}]
    raw = ("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]").encode()
    file = AnnotationFile(write(tmp_path / "a.json", raw))
    assert [json.loads(file.read(i)[0]) for i in range(3)] == rows
    assert [file.line(i) for i in range(3)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b"", "holds no record"),
        ("a.jsonl", b"\n \n", "holds no record"),
        ("a.json", b"[]", "holds no record"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "a .json annotation must be an array"),
    ],
)
def test_files_without_records(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        AnnotationFile(write(tmp_path / name, raw))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        AnnotationFile(tmp_path / "none.jsonl")


def test_the_index_is_built_once_and_anew_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a":1}\n')
    built = []
    original = annotations._index_lines
    monkeypatch.setattr(annotations, "_index_lines", lambda text: built.append(1) or original(text))
    assert len(AnnotationFile(path)) == 1
    assert len(AnnotationFile(path)) == 1
    assert len(built) == 1
    path.write_bytes(b'{"a":1}\n{"a":2}\n')
    os.utime(path, ns=(1, 1))
    assert len(AnnotationFile(path)) == 2
    assert len(built) == 2


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
