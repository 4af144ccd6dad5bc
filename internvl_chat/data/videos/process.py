"""Video files, read in a process of their own: a file that crashes or hangs the decoder ends that
process, not the one that trains or answers.

One reader process a process and thread that reads, started with the first video file and used
again for the next; a good file pays for a pipe only (benchmarks/data/video_process.py).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from PIL import Image

from internvl_chat.config import VIDEO_BACKEND_FIXES, VideoBackend
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.videos.times import FrameTimes
from internvl_chat.errors import ConfigError

TIME_LIMIT_SECONDS: Final = 60
"""For opening a file and for each frame; large files get a second more for each MB."""
_BYTES_A_SECOND: Final = 1_000_000
_EXIT_SECONDS: Final = 10
_MAX_IDLE: Final = 4
_PROGRAM: Final = Path(__file__).with_name("readers.py")

_idle: dict[int, list[ReaderProcess]] = {}
"""By the process they belong to: after a fork the parent's are not ours."""


class ReaderDiedError(Exception):
    """The reader process ended in the middle of a request; the message says how."""


class ReaderProcess:
    """A running ``readers.py``.

    Raises:
        ReaderDiedError: it could not be started.
    """

    def __init__(self) -> None:
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
            self._process = subprocess.Popen(
                [sys.executable, str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
        except OSError as err:  # no process or no file more, a disk that is full
            raise ReaderDiedError(f"could not be started: {err.strerror or err}") from err
        self._owner = os.getpid()
        atexit.register(self.close)

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request.

        Raises:
            ReaderDiedError: it is no longer there.
        """
        assert self._process.stdin is not None, "a pipe was asked for"
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as err:
            raise self._died() from err

    def answer(self) -> tuple[dict[str, Any], bytes]:
        """The next header and the bytes after it.

        Raises:
            ReaderDiedError: it ended before.
        """
        assert self._process.stdout is not None, "a pipe was asked for"
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        try:
            header = json.loads(line)
        except ValueError as err:  # a library that writes where only answers belong
            raise ReaderDiedError(f"answered with other than JSON: {line[:80]!r}") from err
        payload = self._process.stdout.read(header["bytes"])
        if len(payload) < header["bytes"]:
            raise self._died()
        return header, payload

    def _died(self) -> ReaderDiedError:
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # its pipe is closed, and it is still there
            self._process.kill()
            self._process.wait()
            return ReaderDiedError("stopped answering")
        if code == -signal.SIGALRM:
            return ReaderDiedError("was not done within the time limit")
        if code < 0:
            return ReaderDiedError(f"crashed ({_signal_name(-code)})")
        said = os.pread(self._log.fileno(), 1 << 16, 0).decode("utf-8", "replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), f"exit code {code}")
        return ReaderDiedError(f"failed: {last[:200]}")

    def close(self) -> None:
        """End it, if it is this process's own."""
        if self._owner != os.getpid():
            return
        atexit.unregister(self.close)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                with suppress(OSError):  # what was asked of a dead process is still in the pipe
                    pipe.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time ones have no name
        return f"signal {number}"


def _take(idle: list[ReaderProcess]) -> ReaderProcess | None:
    while True:
        try:  # not "if idle": another thread may be faster
            process = idle.pop()
        except IndexError:
            return None
        if process.is_alive():  # the system may have ended it, for its memory
            return process
        process.close()


@contextmanager
def _reader_process() -> Iterator[ReaderProcess]:
    """One that nobody uses; kept for the next if the request went well."""
    idle = _idle.setdefault(os.getpid(), [])
    process = _take(idle) or ReaderProcess()
    try:
        yield process
    except BaseException:
        process.close()  # an answer may be left in the pipe
        raise
    if len(idle) < _MAX_IDLE:
        idle.append(process)
    else:
        process.close()


class VideoFile:
    """A video file; see :func:`internvl_chat.data.video.open_video`.

    Args:
        path: a regular file.
        shown: what messages call it.
        where: ``file:line``, for messages.
        max_pixels: larger frames are refused.
        backend: the library that reads it.
        copy: an open temporary file that ``path`` names; closed with this.
    """

    def __init__(
        self,
        path: str,
        *,
        shown: str,
        where: str,
        max_pixels: int,
        backend: VideoBackend,
        copy: object = None,
    ) -> None:
        self._path, self._where, self._max_pixels, self._backend = shown, where, max_pixels, backend
        self._copy = copy
        try:
            seconds = TIME_LIMIT_SECONDS + os.path.getsize(path) // _BYTES_A_SECOND
        except OSError as err:  # it went meanwhile
            problem = f"cannot read {shown}: {err.strerror or err}"
            raise BadRecordError("UNREADABLE_FILE", problem, where=where) from err
        self._request = {
            "backend": backend,
            "path": os.fsencode(os.path.abspath(path)).hex(),
            "max_pixels": max_pixels,
            "seconds": seconds,
        }
        ((header, payload),) = self._ask(None)
        self.num_frames: int = header["num_frames"]
        self.frames_per_second: float | None = header["rate"]
        self.times: FrameTimes | None = None
        *starts, end = np.frombuffer(payload, dtype=np.float64).tolist()
        if starts:
            self.times = FrameTimes(starts=starts, end=end, rate=self.frames_per_second)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """RGB images of these frames, in this order."""
        numbers = sorted(set(indices))
        found = {}
        for number, (header, payload) in zip(numbers, self._ask(numbers), strict=True):
            size = cast("tuple[int, int]", tuple(header["size"]))
            found[number] = Image.frombytes("RGB", size, payload)
        return [found[i] for i in indices]

    def _ask(self, numbers: list[int] | None) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The answers as they come: one a frame, or what the file holds if no frame is asked for.

        Raises:
            BadRecordError: the file is damaged, or took the reader down.
            ConfigError: there is no such reader.
        """
        try:
            with _reader_process() as process:
                process.ask({**self._request, "numbers": numbers})
                header, payload = process.answer()
                while header["bytes"]:
                    yield header, payload
                    header, payload = process.answer()
                problem = header if "problem" in header else None
        except ReaderDiedError as err:
            raise BadRecordError(
                "BROKEN_VIDEO",
                f"{self._path} cannot be decoded: {self._backend} {err}",
                where=self._where,
            ) from err
        if problem is not None:  # not above: the process is as good as before
            raise self._problem(problem)

    def _problem(self, header: dict[str, Any]) -> BadRecordError | ConfigError:
        code, problem = header["code"], header["problem"]
        if code == "NO_READER":
            return ConfigError(
                f"a video file is to be read, and {problem}", fix=VIDEO_BACKEND_FIXES[self._backend]
            )
        if code == "TOO_MANY_PIXELS":
            return BadRecordError(
                code,
                f"{self._path} {problem}, more than {self._max_pixels}",
                where=self._where,
                fix="Shrink it or raise --max_image_pixels.",
            )
        return BadRecordError(code, f"{self._path} {problem}", where=self._where)
