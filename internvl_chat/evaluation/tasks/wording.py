"""Instructions that several benchmarks end their questions with, to the letter."""

from __future__ import annotations

from typing import Final

SHORT: Final = "Answer the question using a single word or phrase."
LETTER_EN: Final = "Answer with the option's letter from the given choices directly."
