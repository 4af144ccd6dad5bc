"""Tiny LVLM-eHub: does the answer hold the truth, both normalised, as whole words?

Source: https://github.com/OpenGVLab/Multi-Modality-Arena (tiny_lvlm_evaluation), whose normaliser
is that of VQA (https://visualqa.org/evaluation.html) without its first steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""re.UNICODE, which the original hands over as the count."""
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}

_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_OTHERS = """
couldn't've couldn'tve couldnt've / hadn't've hadnt've hadn'tve / he'd've hed've he'dve /
it'd've itd've it'dve / mightn't've mightnt've mightn'tve / 'ow's'at ow's'at 'ows'at 'ow'sat /
she'd've shed've she'dve / shouldn't've shouldnt've shouldn'tve / somebodyd somebody'd /
somebody'd've somebodyd've somebody'dve / someone'd've someoned've someone'dve /
something'd've somethingd've something'dve / there'd've thered've there'dve /
they'd've theyd've they'dve / we'd've wed've we'dve / who'd've whod've who'dve /
wouldn't've wouldnt've wouldn'tve / y'all'll yall'll y'allll /
y'all'd've yall'd've y'alld've y'all'dve / you'd've youd've you'dve
"""
"""A right spelling, then those that are mapped to it."""

CONTRACTIONS = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()} | {
    wrong: words[0] for words in map(str.split, _OTHERS.split("/")) for wrong in words[1:]
}


def normalize(text: str) -> str:
    """A text for comparison; commas and question marks still count as punctuation here."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _words(_PERIOD.sub("", _without_punctuation(text), count=_MOST_PERIODS))


def _without_punctuation(text: str) -> str:
    """A mark next to a blank, or any mark in a text with a number like 1,000, goes; others part."""
    has_comma = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        goes = has_comma or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if goes else " ")
    return result


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def is_hit(answer: str, truths: Sequence[str]) -> bool:
    """Whether one of the truths stands in the answer between word boundaries.

    A truth of which nothing is left (``the``) stands in every answer that has a word.
    """
    said = normalize(answer)
    return any(re.search(rf"\b{re.escape(normalize(one))}\b", said) for one in truths)
