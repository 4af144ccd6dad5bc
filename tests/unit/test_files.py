"""Files and directories that are complete or absent."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvl_chat.files import (
    open_to_readers_of_folder,
    replace_directory,
    sync_directory,
    write_json,
    written_aside,
)


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_under_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with written_aside(path) as aside:
        aside.write_text("half")
        assert (aside.parent, aside.suffix) == (tmp_path, ".safetensors")
        assert not path.exists()
        aside.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("wrote", [True, False])
def test_a_failure_leaves_the_former_file_and_nothing_else(tmp_path: Path, wrote: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail() -> None:
        with written_aside(path) as aside:
            if wrote:
                aside.write_text("ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_killed_process_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    process = os.fork()
    if process == 0:  # dies as by kill -9: nothing is cleaned up
        with written_aside(path) as aside:
            aside.write_text('{"st')
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
    assert json.loads(path.read_text()) == {"step": 1}
    assert names(tmp_path) == [f".a.{process}.partial.json", "a.json"]


def test_content_is_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    seen: list[tuple[str, bool]] = []

    def note(handle: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        seen.append((kind, path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_json(path, {})
    assert seen == [("file", False), ("directory", True)]


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_flush_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if passes:
        sync_directory(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_directory(tmp_path)


def test_json_is_indented_utf_8_and_takes_what_json_has_no_type_for(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"name": "中文", "path": Path("/x")})
    assert path.read_bytes().decode() == '{\n  "name": "中文",\n  "path": "/x"\n}\n'
    write_json(path, [1])
    assert path.read_text() == "[\n  1\n]\n"


def test_json_keeps_paths_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"path": Path(name)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": name}


def test_permissions_follow_the_umask(tmp_path: Path, usual_umask: None) -> None:
    write_json(tmp_path / "a.json", {})
    assert mode(tmp_path / "a.json") == 0o640


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_permissions_of_a_private_file_follow_its_folder(
    tmp_path: Path, folder: int, file: int
) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(folder)
    path = directory / "model.safetensors"
    path.touch(mode=0o600)
    open_to_readers_of_folder(path)
    assert mode(path) == file


def test_a_directory_replaces_another(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("old", "new"):
        staging = tmp_path / "aside"
        staging.mkdir()
        (staging / "weights").write_text(text)
        replace_directory(staging, target)
        assert (target / "weights").read_text() == text
        assert names(tmp_path) == ["model"]


def test_a_former_directory_stays_until_the_name_is_taken(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "no such directory", target)
    assert (tmp_path / "model.replaced" / "weights").read_text() == "old"
