"""VQA accuracy: agreement with several human answers, after both were made alike.

Source: the evaluator of TextVQA (MMF, ``EvalAIAnswerProcessor``), itself after
https://github.com/GT-Vision-Lab/VQA; quirks of it are kept and named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from internvl_chat.evaluation.metrics.averages import mean_in_order

NUM_HUMANS = 10
"""Answers that a question of the benchmarks has."""
ENOUGH = 3
"""Humans who must say the same for a full score."""

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""In this order. Quotes, colons, percent, dollar and other signs stay."""
_DIGITS_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
"""The original's look-behind, which should spare a period after a digit, never applies."""
MOST_PERIODS = 32
"""That are removed: a flag was handed over in the place of a count."""

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(_NUMBER_WORDS.split())}
ARTICLES = frozenset({"a", "an", "the"})

_WITHOUT_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_SEVERAL = {
    "couldn't've": "couldn'tve couldnt've",
    "hadn't've": "hadnt've hadn'tve",
    "he'd've": "hed've he'dve",
    "it'd've": "itd've it'dve",
    "mightn't've": "mightnt've mightn'tve",
    "'ow's'at": "ow's'at 'ows'at 'ow'sat",
    "she'd've": "shed've she'dve",
    "shouldn't've": "shouldnt've shouldn'tve",
    "somebodyd": "somebody'd",
    "somebody'd've": "somebodyd've somebody'dve",
    "someone'd've": "someoned've someone'dve",
    "something'd've": "somethingd've something'dve",
    "there'd've": "thered've there'dve",
    "they'd've": "theyd've they'dve",
    "we'd've": "wed've we'dve",
    "who'd've": "whod've who'dve",
    "wouldn't've": "wouldnt've wouldn'tve",
    "y'all'll": "yall'll y'allll",
    "y'all'd've": "yall'd've y'alld've y'all'dve",
    "you'd've": "youd've you'dve",
}
CONTRACTIONS = {word.replace("'", ""): word for word in _WITHOUT_APOSTROPHE.split()} | {
    key: word for word, keys in _SEVERAL.items() for key in keys.split()
}
"""What is written for it -> the contraction."""


def normalize_answer(text: str) -> str:
    """An answer as the evaluator compares it.

    >>> normalize_answer("The two well- done dogs, dont you think?")
    "2 well done dogs don't you think"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalize_words(text)


def normalize_answer_by_wording(text: str) -> str:
    """An answer as https://visualqa.org/evaluation.html words it, where the evaluator differs.

    Two places: a comma between digits goes and any other becomes a space (the evaluator deletes
    all, ``red,blue`` becomes one word); periods go without a limit.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower()).replace(",", " ")
    text = text.replace("?", "").replace("'s", " 's").strip()
    text = strip_punctuation(_one_line(text))
    return settle_words(_PERIOD.sub("", text))


def normalize_words(text: str) -> str:
    """The later steps alone: white space, punctuation, periods, words.

    Tiny LVLM compares with these.
    """
    return settle_words(strip_periods(strip_punctuation(_one_line(text))))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """Punctuation beside a space goes, all of its kind; other punctuation becomes a space.

    With a comma between two digits in the text, all punctuation goes.
    """
    has_number = _DIGITS_COMMA.search(text) is not None
    left = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if beside_space or has_number else " ")
    return left


def strip_periods(text: str) -> str:
    """Without the first 32 periods that no digit follows.

    >>> strip_periods("a.b 3.5 5. .7 x.")
    'ab 3.5 5 .7 x'
    """
    return _PERIOD.sub("", text, count=MOST_PERIODS)


def settle_words(text: str) -> str:
    """Lower case, digits for number words, no articles, apostrophes in contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(
    answer: str,
    humans: Sequence[str],
    *,
    normalize: Callable[[str], str] = normalize_answer,
) -> float:
    """Mean over the humans of ``min(1, others who say the answer / 3)``.

    Args:
        answer: as generated.
        humans: their answers, ten in the benchmarks; where they are fewer than four, all the others
            are enough, and one alone is simply compared.
        normalize: makes answers alike.

    Returns:
        0, 0.3, 0.6, 0.9 or 1 of ten humans, with the rounding of adding in their order.

    Raises:
        ValueError: there is no human answer.
    """
    if not humans:
        raise ValueError("no human answer to compare with")
    wanted = normalize(answer)
    same = [normalize(human) == wanted for human in humans]
    num_same = same.count(True)
    if len(humans) == 1:
        return float(num_same)
    enough = min(ENOUGH, len(humans) - 1)
    return mean_in_order(min(1, float(num_same - is_same) / enough) for is_same in same)
