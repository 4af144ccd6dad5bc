"""What ended one question, whatever it was, so that the others are answered all the same."""

from __future__ import annotations

import logging
from types import TracebackType

import torch

from internvl_chat.errors import UserError, printable

logger = logging.getLogger(__name__)


class Attempt:
    """A block that may fail without ending more than itself; ``error`` is what it raised.

    For the work on one of many things that users give: decoders, tokenizers and kernels raise
    whatever they like, and no list of kinds is complete. Ctrl-C and the end of the process pass.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(err, Exception):
            return False
        self.error = err
        return True


def describe_failure(err: Exception) -> str:
    """A failure in a sentence; a kind that nobody foresaw goes to the log with its traceback."""
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return "the memory is full. Ask about fewer or smaller images, or fewer questions at a time"
    text = printable(str(err)).strip()
    if isinstance(err, UserError | ValueError) and text:
        return text
    logger.info("unforeseen: %s", type(err).__name__, exc_info=err)
    return f"{type(err).__name__}: {text.splitlines()[0]}" if text else type(err).__name__
