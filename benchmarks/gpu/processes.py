"""A child process whose lines are read as they come, and which ends when enough was read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.common import ROOT, python_path

SECONDS_TO_END = 15.0


class ChildError(RuntimeError):
    """A child ended before it was done; holds the end of what it wrote."""


def environment(*, threads: int) -> dict[str, str]:
    """Of all children: no network, this package."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": python_path(),
    }


def start(
    words: Sequence[str],
    *,
    threads: int = 4,
    waits: bool = False,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start ``python WORDS``.

    Args:
        words: behind the interpreter's name.
        threads: of OpenMP.
        waits: whether the program waits for its turn (:mod:`benchmarks.gpu.turn`).
        variables: of its environment, beside those of all.
    """
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**environment(threads=threads), **(variables or {})},
        stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def follow(
    child: subprocess.Popen[str],
    *,
    log_path: Path,
    limit_seconds: float,
    is_done: Callable[[str], bool],
) -> str:
    """Let a child run until a line says that it is done, the process ends or time is up.

    Args:
        child: of :func:`start`; one that waits gets its turn now.
        log_path: all output, stderr too.
        limit_seconds: the process is ended then.
        is_done: told each line; True ends the process.

    Returns:
        ``done``, ``ended`` (exit code 0) or ``time``.

    Raises:
        ChildError: the process failed by itself.
    """
    is_late = threading.Event()

    def end_late() -> None:
        is_late.set()
        end_group(child)

    timer = threading.Timer(max(limit_seconds, 0.0), end_late)
    timer.start()
    done = False
    try:
        _give_turn(child)
        assert child.stdout is not None
        with log_path.open("w", encoding="utf-8") as log:
            for line in child.stdout:
                log.write(line)
                log.flush()
                if is_done(line):
                    done = True
                    break
        if done:
            end_group(child)
        code = child.wait()
    finally:
        timer.cancel()
        end_group(child)
    if done:
        return "done"
    if is_late.is_set():
        return "time"
    if code:
        said = [str(word) for word in child.args][1:4]  # type: ignore[union-attr]
        raise ChildError(f"exit code {code}: {' '.join(said)}, {log_path}:\n{tail(log_path)}")
    return "ended"


def _give_turn(child: subprocess.Popen[str]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it failed already; its output says why
            child.stdin.close()


def end_group(child: subprocess.Popen[str]) -> None:
    """End the process and what it started: asked first, then at once."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        try:
            os.killpg(child.pid, number)
            child.wait(SECONDS_TO_END)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def tail(path: Path, characters: int = 2500) -> str:
    """The end of a log."""
    return path.read_text("utf-8", errors="replace")[-characters:]
