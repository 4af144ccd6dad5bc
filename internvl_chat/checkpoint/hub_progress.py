"""How far a download has come: huggingface_hub's bars on a terminal, a line now and then elsewhere.

Bars in a log file are thousands of lines; nothing at all looks like a run that hangs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

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


def download_bar(model: str | None) -> type[Any]:
    """The class of bars that ``snapshot_download`` is to make.

    Args:
        model: what is downloaded, for the lines; None shows nothing (a handful of small files).
    """
    from huggingface_hub.utils import tqdm

    if model is not None and sys.stderr.isatty():
        return tqdm

    class Lines(tqdm):  # type: ignore[type-arg]
        """Draws nothing; tells of the sum over all files."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = model is not None and kwargs.get("name") == _BYTES_BAR
            self._told_at = time.monotonic()
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            now = time.monotonic()
            if self._counts and now - self._told_at >= _SECONDS:
                self._told_at = now
                share = f" of {self.total / 1e9:.2f}" if self.total else ""
                logger.info("%s: %.2f%s GB are here", model, self.n / 1e9, share)
            return None

    return Lines
