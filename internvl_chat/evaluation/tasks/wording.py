"""Instructions that several benchmarks end their questions with, to the letter."""

from __future__ import annotations

from typing import Final

SHORT: Final = "Answer the question using a single word or phrase."
LETTER_EN: Final = "Answer with the option's letter from the given choices directly."
LETTER_CN: Final = "请直接回答选项字母。"
NAMED_LETTER = (
    "the letter is the one that an answer names: `b`, `(B)`, `B. two`, `the answer is B`, not the "
    "first of a word"
)
"""What ``named_letter`` changes against ``read_letter``, for the docs."""
NAMED_OPTION = f"{NAMED_LETTER}; an option's text counts as whole words, whatever the case"
"""The same where the options' texts are known."""
