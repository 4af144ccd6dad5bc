"""The process that reads video files may crash, hang or be killed; this one goes on."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.videos import process
from internvl_chat.data.videos.process import ReaderProcess, VideoFile
from internvl_chat.errors import ConfigError
from tests.support.search_path import search_path

GREYS = str(Path(__file__).parents[1] / "greys.mp4")


def open_greys() -> VideoFile:
    return VideoFile(GREYS, shown="greys.mp4", where="", max_pixels=10**6, backend="decord")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[ReaderProcess]]:
    """No reader runs yet."""
    idle: dict[int, list[ReaderProcess]] = {}
    monkeypatch.setattr(process, "_idle", idle)
    return idle


def test_one_process_reads_all_files(fresh: dict[int, list[ReaderProcess]]) -> None:
    first, second = open_greys(), open_greys()
    ((reader,),) = fresh.values()
    pid = reader._process.pid
    greys = [image.getpixel((30, 30))[0] for image in first.frames([7, 0, 7])]
    assert greys == pytest.approx([94, 10, 94], abs=3)
    assert second.frames([]) == []
    assert [one._process.pid for one in fresh[os.getpid()]] == [pid]


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """Put another program in the reader's place."""
    program = tmp_path / "reader.py"
    program.write_text(f"import os, signal, sys, time\nsys.stdin.readline()\n{lines}\n")
    monkeypatch.setattr(process, "_PROGRAM", program)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"decord crashed \(SIGSEGV\)"),
        ("os.abort()", r"decord crashed \(SIGABRT\)"),
        ("signal.alarm(1); time.sleep(60)", "was not done within the time limit"),
        ("print('half', end='', flush=True)", "failed: exit code 0"),
        ("""print('{"bytes": 9}\\n123', end='', flush=True)""", "failed: exit code 0"),
        ("raise MemoryError", "failed: MemoryError"),
    ],
)
def test_a_reader_that_ends_is_a_bad_record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh: dict[int, list[ReaderProcess]],
    lines: str,
    problem: str,
) -> None:
    with monkeypatch.context() as patch:
        stand_in(tmp_path, patch, lines)
        with pytest.raises(BadRecordError, match=problem) as caught:
            open_greys()
        assert caught.value.code == "BROKEN_VIDEO"
    assert fresh == {os.getpid(): []}
    assert open_greys().num_frames == 20  # the next file has a new one


def test_a_reader_killed_between_two_requests(fresh: dict[int, list[ReaderProcess]]) -> None:
    video = open_greys()
    ((reader,),) = fresh.values()
    os.kill(reader._process.pid, signal.SIGKILL)
    reader._process.wait()
    assert len(video.frames([1])) == 1


def put_decord(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Another library by this name, for reader processes that start from now on."""
    (folder / "decord.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", search_path(folder))


def test_a_library_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: dict[int, list[ReaderProcess]]
) -> None:
    put_decord(tmp_path, monkeypatch, "import time\ntime.sleep(60)")
    monkeypatch.setattr(process, "TIME_LIMIT_SECONDS", 1)
    with pytest.raises(BadRecordError, match="was not done within the time limit"):
        open_greys()
    assert fresh == {os.getpid(): []}


def test_threads_have_a_reader_each(fresh: dict[int, list[ReaderProcess]]) -> None:
    with ThreadPoolExecutor(6) as pool:
        files = list(pool.map(lambda _: open_greys().frames([3])[0].getpixel((9, 9)), range(24)))
    assert len(set(files)) == 1
    assert len(fresh[os.getpid()]) <= 4


def test_a_forked_process_starts_its_own(fresh: dict[int, list[ReaderProcess]]) -> None:
    """As DataLoader workers do: the parent's pipes are not theirs."""
    video = open_greys()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, str(len(video.frames([2]))).encode())
        for one in fresh[os.getpid()]:
            one.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(receive, 9) == b"1"
    assert len(video.frames([5])) == 1
    os.close(receive)
    os.close(send)


def test_a_library_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: object
) -> None:
    put_decord(tmp_path, monkeypatch, "raise ImportError('no such thing')")
    with pytest.raises(ConfigError, match=r"decord does not load: no such thing.*pyav"):
        open_greys()
