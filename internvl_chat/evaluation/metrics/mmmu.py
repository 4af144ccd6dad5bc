"""MMMU: which short answers are right, and how subjects become disciplines.

Source: https://github.com/MMMU-Benchmark/MMMU (eval_utils.py, main_eval_only.py), as the InternVL
evaluator carries it: choices are compared letter by letter, without the toolbox's parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SUBJECTS = (
    "Accounting",
    "Agriculture",
    "Architecture_and_Engineering",
    "Art",
    "Art_Theory",
    "Basic_Medical_Science",
    "Biology",
    "Chemistry",
    "Clinical_Medicine",
    "Computer_Science",
    "Design",
    "Diagnostics_and_Laboratory_Medicine",
    "Economics",
    "Electronics",
    "Energy_and_Power",
    "Finance",
    "Geography",
    "History",
    "Literature",
    "Manage",
    "Marketing",
    "Materials",
    "Math",
    "Mechanical_Engineering",
    "Music",
    "Pharmacy",
    "Physics",
    "Psychology",
    "Public_Health",
    "Sociology",
)
"""In the order in which they are asked."""

DISCIPLINES: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""With their subjects, in the order of print."""

Value = str | float
_MARKERS = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def subject_of(identity: str) -> str:
    """``validation_Art_Theory_7`` -> ``Art_Theory``."""
    return "_".join(identity.split("_")[1:-1])


def short_answer_is_right(gold: str | Sequence[str], answer: str) -> bool:
    """Whether a number of the answer is a gold one, or a gold text occurs in a text of it.

    Args:
        gold: one, or several of which any will do.
        answer: as generated.
    """
    golds = [gold] if isinstance(gold, str) else gold
    wanted = [value for one in golds for value in _normalise(one)]
    texts = [value for value in wanted if isinstance(value, str)]
    for value in read_values(answer):
        if isinstance(value, str):
            if any(text in value for text in texts):
                return True
        elif value in wanted:
            return True
    return False


def read_values(answer: str) -> list[Value]:
    """What an open answer may have meant: its key phrases, and the numbers in them."""
    phrases = _key_phrases(answer)
    found = [*phrases, *(number for phrase in phrases for number in _numbers(phrase))]
    return list(dict.fromkeys(value for one in found for value in _normalise(one)))


def _key_phrases(answer: str) -> list[str]:
    text = answer.strip().strip(".").lower()
    # The original also splits at ". " before a capital, of which a lower-cased text has none.
    pieces = text.split("\n")
    phrases = []
    for number, piece in enumerate(pieces, start=1):
        markers = (*_MARKERS, "=") if number == len(pieces) else _MARKERS
        shortest = ""
        for marker in markers:
            if marker in piece:
                tail = piece.rpartition(marker)[2].strip()
                if not shortest or len(tail) < len(shortest):  # an empty one gives way to any
                    shortest = tail
        if shortest and shortest not in _TRIVIAL:
            phrases.append(shortest)
    return phrases or [text]


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]


def _normalise(text: str) -> list[Value]:
    """A number with two decimals, or lower case; a single character with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        pass
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def choice_by_toolbox(answer: str, options: Mapping[str, str]) -> str:
    """The letter that MMMU's own parser reads, which the evaluator does not call.

    ``(B)``, else a ``B`` between spaces, else an option's text in an answer of more than five
    words; the last one named counts. Empty where the toolbox draws one by chance.
    """
    text = answer
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in options}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    if len(text.split()) > 5:
        lowered = text.lower()
        places = {letter: lowered.rfind(option.lower()) for letter, option in options.items()}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    return ""


def table_of(verdicts: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, float]]:
    """Numbers and accuracies, each discipline followed by its subjects, and the whole.

    Args:
        verdicts: subject -> whether each answer is right; others than :data:`SUBJECTS` are left
            out, as is a subject without answers.
    """
    accuracy = {
        subject: sum(verdicts[subject]) / len(verdicts[subject])
        for subject in SUBJECTS
        if verdicts.get(subject)
    }
    number = {subject: len(verdicts[subject]) for subject in accuracy}
    table: dict[str, dict[str, float]] = {}

    def add(name: str, subjects: Sequence[str]) -> None:
        total = sum(number[one] for one in subjects)
        right = sum((accuracy[one] * number[one] for one in subjects), 0.0)
        table[name] = {"num": total, "acc": round(right / total, 3) if total else 0}

    for discipline, members in DISCIPLINES.items():
        present = [one for one in members if one in accuracy]
        add(f"Overall-{discipline}", present)
        for subject in present:
            table[subject] = {"num": number[subject], "acc": round(accuracy[subject], 3)}
    add("Overall", list(accuracy))
    return table
