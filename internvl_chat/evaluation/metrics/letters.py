"""Which option an answer to a multiple-choice question means.

Source of :func:`read_letter`: ``post_process`` of the InternVL evaluators (MMBench, CCBench, MMMU,
MMVP, ScienceQA). It understands neither ``(B)`` nor ``Answer: B``, and takes a word's capital for a
letter; :func:`named_letter` is what a person would read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WHOLE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\(([A-Za-z])\)|([A-Z])\s*[.:)](?=\s|$)")
_STATED = re.compile(
    r"\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*(?:\(([A-Za-z])\)|\*{0,2}([A-Z])\b)"
)


def lettered(options: Iterable[str]) -> dict[str, str]:
    """Options by their letters, A first.

    Raises:
        ValueError: more than 26.
    """
    texts = list(options)
    if len(texts) > len(LETTERS):
        raise ValueError(f"{len(texts)} options, {len(LETTERS)} letters")
    return dict(zip(LETTERS, texts, strict=False))


def listed(options: Mapping[str, str]) -> list[str]:
    """``A. text`` of each option."""
    return [f"{letter}. {text}" for letter, text in options.items()]


def read_letter(answer: str, options: Mapping[str, str]) -> str:
    """The letter that an answer is read as, or a text that is none.

    Args:
        answer: as generated.
        options: letter -> text, in the order in which they are looked for.

    Returns:
        A single character as it stands (``b`` stays ``b``); the first character if it is an
        option's letter; the first option whose text occurs in the answer; else the answer,
        stripped. Empty for an empty answer, on which the evaluators stop with an error.
    """
    text = answer.strip()
    if len(text) <= 1:
        return text
    if text[0] in options:
        return text[0]
    return next((letter for letter, option in options.items() if option in text), text)


def read_letter_later(answer: str, options: Mapping[str, str]) -> str:
    """:func:`read_letter` of today's ScienceQA evaluator, which also reads ``B. two``, ``(B) two``.

    Any letter is taken there, whether it is an option or not.
    """
    text = read_letter(answer, options)
    if len(text) > 1 and text[1] == ".":
        return text[0]
    if len(text) > 2 and text[0] == "(" and text[2] == ")":
        return text[1]
    return text


def named_letter(answer: str, options: Mapping[str, str] | Sequence[str]) -> str:
    """The letter that an answer names; empty if it names none, or several options.

    In this order: an answer that is a letter (``b``, ``(B)``, ``B.``); one that begins with a
    letter set apart (``B. two``, ``(B) two``); one that says so (``the answer is B``); one that
    holds the text of a single option, as words, whatever the case.

    Args:
        answer: as generated.
        options: letter -> text; or letters alone, where the texts are not known.
    """
    text = answer.strip()
    for match in (_WHOLE.fullmatch(text), _LEADING.match(text), _STATED.search(text)):
        letter = next((group.upper() for group in match.groups() if group), "") if match else ""
        if letter in options and letter:
            return letter
    if not isinstance(options, Mapping):
        return ""
    same = [letter for letter, option in options.items() if option.lower() == text.lower()]
    found = same or [letter for letter, option in options.items() if _holds(text, option)]
    return found[0] if len(found) == 1 else ""


def _holds(text: str, option: str) -> bool:
    pattern = rf"(?<!\w){re.escape(option.strip())}(?!\w)"
    return bool(option.strip()) and re.search(pattern, text, re.IGNORECASE) is not None
