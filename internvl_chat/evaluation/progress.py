"""How far a task is, on rank 0's terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 30.0


class AnswerProgress:
    """Answers so far, answers a second and time left: a bar, or a line now and then in a log.

    Args:
        name: of the task.
        total: questions of all ranks.
        done: of them answered by an earlier run.
        num_ranks: each of which is taken to be as fast as this one.
        is_shown: on this rank.
    """

    def __init__(self, name: str, total: int, done: int, num_ranks: int, is_shown: bool) -> None:
        self._console = Console(stderr=True)
        self._is_shown = is_shown
        self._is_bar = is_shown and self._console.is_terminal
        self._name, self._total, self._done = name, total, done
        self._num_ranks, self._own = num_ranks, 0
        self._begin = self._told = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} answers/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._is_bar,
        )
        self._task = self._bar.add_task(name, total=total, completed=done, rate=0.0)

    def __enter__(self) -> AnswerProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if kind is None and self._is_shown and not self._is_bar and self._own:
            self._tell()

    def add(self, count: int) -> None:
        """So many more are answered on this rank."""
        self._own += count
        self._bar.update(self._task, completed=self._completed(), rate=self._rate())
        due = time.monotonic() - self._told > _SECONDS_BETWEEN_LINES
        if self._is_shown and not self._is_bar and due:
            self._tell()

    def _completed(self) -> int:
        return min(self._total, self._done + self._own * self._num_ranks)

    def _rate(self) -> float:
        seconds = max(time.monotonic() - self._begin, 1e-6)
        return self._own * self._num_ranks / seconds

    def _tell(self) -> None:
        self._told = time.monotonic()
        left = (self._total - self._completed()) / max(self._rate(), 1e-6)
        self._console.print(
            f"{self._name}: {self._completed()}/{self._total}, {self._rate():.1f} answers/s, "
            f"{left:.0f} s left",
            highlight=False,
        )
