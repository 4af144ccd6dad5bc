"""Text that goes round in circles, as generators leave it. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final

_N: Final = 10
_SHARE: Final = 0.4
_FEWEST: Final = 10
"""10-grams below which a share says nothing."""
_LONGEST: Final = 200_000
"""Characters of a text that are looked at: bounds the memory."""
_LONG_WORD: Final = 16
"""Words that are longer on average are a script without blanks (or no words at all)."""
_TAG: Final = re.compile(r"<[^<>\n]{1,60}>")
_RULE: Final = re.compile(r"([^\w\s])\1{3,}")


def repeated_share(texts: Sequence[str]) -> float:
    """Share of the texts' 10-grams that occur more than once in them, from 0 to 1.

    10-grams are of words, and of characters in scripts without blanks. None goes from one text into
    the next. Tags and drawn rules (``-----``) are left out; fewer than ten 10-grams count as none.
    """
    grams = _grams([_RULE.sub(r"\1", _TAG.sub(" ", text)) for text in texts])
    if len(grams) < _FEWEST:
        return 0.0
    return sum(count for count in Counter(grams).values() if count > 1) / len(grams)


def is_repetitive(texts: Sequence[str]) -> bool:
    """Whether more than 40 % of the 10-grams occur more than once."""
    if sum(map(len, texts)) < 2 * _N - 1:
        return False
    grams = _grams(texts)
    # A gram that occurs twice is lost once among the distinct ones: most text is done here.
    if len(grams) < _FEWEST or len(set(grams)) > len(grams) * (1 - _SHARE / 2):
        return False
    return repeated_share(texts) > _SHARE


def _grams(texts: Sequence[str]) -> list[Hashable]:
    grams: list[Hashable] = []
    for whole in texts:
        text = whole[:_LONGEST]
        words = text.split()
        if len(text) > (_LONG_WORD + 1) * len(words):
            joined = "".join(words)
            grams += [joined[i : i + _N] for i in range(len(joined) - _N + 1)]
        elif len(words) >= _N:
            grams += zip(*(words[i:] for i in range(_N)), strict=False)
    return grams
