"""Instructions that several benchmarks end their questions with, to the letter."""

from __future__ import annotations

from typing import Final

SHORT: Final = "Answer the question using a single word or phrase."
LETTER_EN: Final = "Answer with the option's letter from the given choices directly."
LETTER_CN: Final = "请直接回答选项字母。"
CHAIN_OF_THOUGHT: Final = (
    "Your task is to answer the question below. Give step by step reasoning before you answer, and "
    'when you\'re ready to answer, please use the format "Final answer: .."\n\n'
    "Question:\n\n{question}"
)
"""Of ``--cot``; the question stands in it without an instruction of its own."""
COT_TOKENS: Final = 4096
"""Most tokens of an answer with ``--cot``."""
NO_COT_IN_2024: Final = "--cot is of the later evaluators: under 2024 stands the score of later"
"""A note on scores of answers that were reasoned for."""
FIRST_VERDICT: Final = (
    "the first word of the whole answer that says yes or no counts, whatever its case "
    "(`NO`, `isn't`)"
)
"""What ``first_verdict`` changes, for the docs."""
NAMED_LETTER = (
    "the letter is the one that an answer names: `b`, `(B)`, `B. two`, `the answer is B`, not the "
    "first of a word"
)
"""What ``named_letter`` changes against ``read_letter``, for the docs."""
NAMED_OPTION = f"{NAMED_LETTER}; an option's text counts as whole words, whatever the case"
"""The same where the options' texts are known."""
