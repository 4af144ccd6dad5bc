"""Which option of a multiple-choice question an answer means, by rules.

Source: https://github.com/open-compass/VLMEvalKit (vlmeval/utils/matching_util.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FAILED = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NONE_FITS = "Z"
"""What stands for "none of the options"."""
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is[\s*]*([A-D])", re.IGNORECASE)
LAST_WORDS = 4
"""Where a letter counts today."""


def can_infer(answer: str, options: Mapping[str, Any], *, later: bool = False) -> str | None:
    """A letter, ``Z`` for none of them, or None where the rules cannot tell.

    Args:
        answer: of a model.
        options: letter -> option, which is compared as text.
        later: today's rules: a letter must stand among the last four words, ``answer is X`` is
            read (with no boundary after X: ``The answer is blue`` is B), long answers are not.
    """
    return infer_letter(answer, options, later=later) or infer_text(answer, options, later=later)


def infer_letter(answer: str, options: Mapping[str, Any], *, later: bool = False) -> str | None:
    """The one option letter that is a word of the answer, else ``Z`` or None."""
    if FAILED in answer:
        return None
    if any(text in answer for text in REFUSALS):
        return NONE_FITS
    words = answer.translate(_TO_SPACES).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and (not later or words.index(found[0]) > len(words) - LAST_WORDS - 1):
        return found[0]
    if not found and NONE_FITS in words:
        return NONE_FITS
    if later and (match := _ANSWER_IS.search(answer)) and match[1].upper() in options:
        return match[1].upper()
    return None


def infer_text(answer: str, options: Mapping[str, Any], *, later: bool = False) -> str | None:
    """The one option whose text occurs in the answer, whatever the case."""
    texts = {letter: str(option).lower() for letter, option in options.items()}
    if later and len(answer) > 2 * sum(map(len, texts.values())):
        return None
    lowered = answer.lower()
    found = [letter for letter, text in texts.items() if text in lowered]
    return found[0] if len(found) == 1 else None
