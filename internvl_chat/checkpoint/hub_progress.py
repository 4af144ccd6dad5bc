"""How far a download has come: huggingface_hub's bars on a terminal, a line now and then elsewhere.

Bars in a log file are thousands of lines; nothing at all looks like a run that hangs.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from internvl_chat.errors import Attempt

T = TypeVar("T")

logger = logging.getLogger("internvl_chat.checkpoint.hub")  # one level for all of it

_SECONDS: Final = 30.0
_BYTES_BAR: Final = "huggingface_hub.snapshot_download"
"""Name of the bar that counts what has arrived, over all files."""


def show_downloads() -> None:
    """Let downloads be told of on stderr, whatever else is logged; an entry point calls it."""
    logger.setLevel(logging.INFO)
    if not logging.getLogger().handlers and not logger.handlers:
        logger.addHandler(logging.StreamHandler())


@contextmanager
def with_bars() -> Iterator[None]:
    """huggingface_hub's bars, which transformers puts out together with its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if constants.HF_HUB_DISABLE_PROGRESS_BARS or not are_progress_bars_disabled():
        yield
        return
    enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()


class StoppedError(Exception):
    """Raised in the threads of a download that nobody waits for any more."""


def interruptible(work: Callable[[threading.Event], T]) -> T:
    """Do work that waits for threads of its own, and leave at once when a signal ends the wait.

    Args:
        work: is given what tells it to stop.
    """
    stop: threading.Event = threading.Event()
    outcome: Future[T] = Future()

    def run() -> None:
        with Attempt() as attempt:
            outcome.set_result(work(stop))
        if attempt.error is not None:
            outcome.set_exception(attempt.error)

    try:
        threading.Thread(target=run, name="download", daemon=True).start()
        return outcome.result()
    finally:
        stop.set()


def download_bar(model: str | None, stop: threading.Event) -> type[Any]:
    """The class of bars that ``snapshot_download`` is to make.

    Args:
        model: what is downloaded, for the lines; None shows nothing (a handful of small files).
        stop: when it is set, the next piece that arrives ends the download.
    """
    from huggingface_hub.utils import tqdm

    shows_bars = model is not None and sys.stderr.isatty()

    class DownloadBar(tqdm):  # type: ignore[type-arg]
        """On a terminal huggingface_hub's, else it draws nothing and tells of the sum."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = model is not None and kwargs.get("name") == _BYTES_BAR
            self._told_at = time.monotonic()
            super().__init__(*args, **(kwargs if shows_bars else {**kwargs, "disable": True}))

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise StoppedError
            if shows_bars:
                return super().update(n)
            self.n += n or 0
            now = time.monotonic()
            if self._counts and now - self._told_at >= _SECONDS:
                self._told_at = now
                share = f" of {self.total / 1e9:.2f}" if self.total else ""
                logger.info("%s: %.2f%s GB are here", model, self.n / 1e9, share)
            return None

    return DownloadBar
