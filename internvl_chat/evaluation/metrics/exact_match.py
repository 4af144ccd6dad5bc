"""Exact match of AI2D: whole texts but for case, or the option's letter alone."""

from __future__ import annotations

import re

_LETTER_FIRST = re.compile(r"\(?([A-Za-z])(?:[).:,]|$)")


def same_text(prediction: str, gold: str) -> bool:
    """Whether both are equal but for case and outer white space: ``C.`` is not ``C``."""
    return prediction.strip().lower() == gold.strip().lower()


def same_letter(prediction: str, gold: str) -> bool:
    """Whether both are equal, or the prediction begins with the gold letter as an option is named.

    >>> [same_letter(text, "C") for text in ("C. stem", "(c)", "C: stem", "Carbon", "a C")]
    [True, True, True, False, False]
    """
    if same_text(prediction, gold):
        return True
    found = _LETTER_FIRST.match(prediction.strip())
    return found is not None and found[1].lower() == gold.strip().lower()
