"""Tokens of an answer, one by one -> the text that is certain.

The pieces together are what ``model.chat`` returns for the same tokens: special tokens such as
``<ref>`` and ``<box>`` stay, white space at both ends goes, and nothing behind a stop string is
told. A piece is held back as long as it may turn out to be the beginning of a stop string, white
space at the end, or half a character. (Bytes that are no UTF-8 are the exception: a tokenizer that
falls back to bytes spoils with them the valid ones before, which have been told by then.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from internvl_chat.model.chat import control_ids, cut_at_stop, decode_tokens

_HALF = "\ufffd"  # what a tokenizer decodes an unfinished character to


class AnswerText:
    """The text of one answer as it grows.

    Args:
        tokenizer: the checkpoint's.
        stop: strings that end the answer; not empty.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._control = control_ids(tokenizer)
        self._ids: list[int] = []
        # Decoded are always ids[_context:]; those up to _told give the new ones their surroundings
        # (a word's leading space, for one).
        self._context = 0
        self._told = 0
        self._held = ""
        self._has_begun = False
        self.stopped = False
        """Whether a stop string was found."""

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that became certain by it, often empty."""
        if self.stopped or token_id in self._control:
            return ""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._context : self._told])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(before) or text.endswith(_HALF):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return self._certain(text[len(before) :])

    def finish(self) -> str:
        """No token follows; returns the rest of the text."""
        if not self.stopped:
            before = self._decode(self._ids[self._context : self._told])
            text = self._decode(self._ids[self._context :])
            self._context = self._told = len(self._ids)
            self._search(text[len(before) :])
        rest, self._held = self._held, ""
        return self._tell(rest.rstrip())

    def _decode(self, ids: list[int]) -> str:
        return decode_tokens(self._tokenizer, ids)

    def _certain(self, text: str) -> str:
        self._search(text)
        if self.stopped:
            return ""  # finish() tells the rest
        end = len(self._held) - self._num_undecided()
        end = len(self._held[:end].rstrip())
        ready, self._held = self._held[:end], self._held[end:]
        return self._tell(ready)

    def _search(self, text: str) -> None:
        """Add text to what is held, and cut that at the first stop string."""
        self._held, self.stopped = cut_at_stop(self._held + text, self._stop)

    def _num_undecided(self) -> int:
        """Characters at the end that a stop string may begin with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(stop.startswith(tail) for stop in self._stop):
                return size
        return 0

    def _tell(self, text: str) -> str:
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        return text
