"""Common English words of three and four letters; every sixth is kept for held-out images."""

from pathlib import Path

_WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()

HELD_OUT_WORDS = tuple(_WORDS[5::6])
TRAIN_WORDS = tuple(word for i, word in enumerate(_WORDS) if i % 6 != 5)
