"""What ended one question, whatever it was, so that the others are answered all the same."""

from __future__ import annotations

import logging

import torch

from internvl_chat.errors import UserError, printable

logger = logging.getLogger(__name__)


def describe_failure(err: Exception) -> str:
    """A failure in a sentence; a kind that nobody foresaw goes to the log with its traceback."""
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return "the memory is full. Ask about fewer or smaller images, or fewer questions at a time"
    text = printable(str(err)).strip()
    if isinstance(err, UserError | ValueError) and text:
        return text
    logger.info("unforeseen: %s", type(err).__name__, exc_info=err)
    return f"{type(err).__name__}: {text.splitlines()[0]}" if text else type(err).__name__
