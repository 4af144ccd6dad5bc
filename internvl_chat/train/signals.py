"""Signals that end a run: its last word is said whatever the main thread is doing.

Python runs a signal's handler in the main thread, between two of its own instructions: a rank that
waits in a collective would not hear SIGTERM. The number of the signal therefore also goes, from C,
to a thread that waits for it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

GRACE_SECONDS = 10.0
"""For the main thread to clear up after itself, before the process is ended without it."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def leave_signals_to_parent(worker: int) -> None:
    """Let a data worker go on although its whole group gets a signal: what to do is the parent's.

    torchrun and Slurm send theirs to every process, and without its workers a run cannot come to
    the checkpoint that it is to save. What the parent itself sends ends the worker; one whose
    parent has died ends by itself (torch looks every 5 s).

    Args:
        worker: number of the worker, as a DataLoader's ``worker_init_fn`` is given it.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Blocked here, so that it waits for the thread, which is told who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_if_parent_says, args=(os.getppid(),), daemon=True).start()
    sys.excepthook = _show_unless_parent_left


def _show_unless_parent_left(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The thread that hands tensors over complains of a parent that ends in the middle of it."""
    if not isinstance(error, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def _end_if_parent_says(parent: int) -> None:
    while True:
        told = signal.sigwaitinfo({signal.SIGTERM})
        if told.si_pid == parent or os.getppid() != parent:
            os._exit(0)


class InterruptedBySignal(BaseException):
    """A signal has asked this process to end; no ``except Exception`` on the way keeps it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


class EndingSignals:
    """SIGTERM, SIGINT, SIGHUP and SIGUSR1 of this process, while the block lasts.

    The first one raises :class:`InterruptedBySignal` in the main thread. A second one, or a main
    thread that does not get to it within ``grace_seconds``, ends the process by ``force``. While
    ``defers`` is set (a checkpoint is to be saved first) all but SIGINT are only noted.

    Outside the main thread, which alone may handle signals, nothing is done.
    """

    def __init__(
        self,
        force: Callable[[int], object],
        *,
        meaning: Callable[[int], int] = int,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Nothing is installed yet.

        Args:
            force: called with the signal's number, in a thread; it must end the process.
            meaning: of a signal that a launcher sends in place of another.
            grace_seconds: see above.
        """
        self._force = force
        self._meaning = meaning
        self._grace_seconds = grace_seconds
        self._before: dict[int, Any] = {}
        self._told = threading.Event()
        self._is_raised = False
        self._reading, self._writing = -1, -1
        self.defers = False
        self.received: int | None = None
        """Number of the first signal."""

    def __enter__(self) -> EndingSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        for number in ENDING:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._handle)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        _installed.append(self)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self in _installed:
            self._restore()
            os.write(self._writing, b"\0")  # the thread ends, and closes the pipe

    def settle(self, seconds: float = 0.0) -> int | None:
        """Raise no more, the end has begun.

        Returns:
            Number of the first signal, waited for at most so long; None without one.
        """
        self._is_raised = True
        self._told.wait(seconds)
        return self.received

    def _restore(self) -> None:
        _installed.remove(self)
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        number = self._note(number)
        if self._is_raised or (self.defers and number != signal.SIGINT):
            return
        self._is_raised = True
        raise InterruptedBySignal(number)

    def _note(self, number: int) -> int:
        number = self._meaning(number)
        if self.received is None:
            self.received = number
        self._told.set()
        return number

    def _watch(self) -> None:
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([self._reading], [], [], left)[0]:
                break  # the main thread did not get to it
            number = os.read(self._reading, 1)[0]
            if number == 0:
                os.close(self._reading)
                os.close(self._writing)
                return
            if number not in ENDING:
                continue
            number = self._note(number)
            if self.defers and number != signal.SIGINT:
                continue
            if deadline is not None:
                break
            deadline = time.monotonic() + self._grace_seconds
        self._force(self.received or signal.SIGTERM)


_installed: list[EndingSignals] = []


def _forget_in_child() -> None:
    """A forked process (a data worker) has its own signals, and must not write into our pipe."""
    for signals in list(_installed):
        signals._restore()


os.register_at_fork(after_in_child=_forget_in_child)
