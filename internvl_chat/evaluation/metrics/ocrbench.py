"""OCRBench: does an accepted text occur in the answer?

Source: https://github.com/Yuliang-Liu/MultimodalOCR (OCRBench), as VLMEvalKit carries it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FORMULAS = "Handwritten Mathematical Expression Recognition"
TEXT_RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
OTHERS = (
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    FORMULAS,
)
CATEGORIES = TEXT_RECOGNITION + OTHERS


def is_hit(answer: str, accepted: Sequence[str], category: str | None) -> bool:
    """Whether an accepted text occurs in the answer: case ignored, in formulas spaces instead."""
    said = _plain(answer, category)
    return any(_plain(text, category) in said for text in accepted)


def _plain(text: str, category: str | None) -> str:
    if category == FORMULAS:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")


def accepted_texts(value: Any, *, official: bool) -> list[str]:
    """The accepted texts of a row's literal.

    A text instead of a list is gone through character by character, as the original does; under
    ``official`` it is one accepted text.
    """
    if isinstance(value, str):
        return [value] if official else list(value)
    if isinstance(value, list | tuple | set):
        return [str(item) for item in value]
    return [str(value)]


def totals(points: Mapping[str, int]) -> dict[str, float]:
    """The result in the order that it is printed in.

    Args:
        points: hits by category; other categories than OCRBench's do not count.
    """
    result: dict[str, float] = {
        "Text Recognition": sum(points.get(name, 0) for name in TEXT_RECOGNITION)
    }
    result |= {name: points.get(name, 0) for name in OTHERS}
    result["Final Score"] = sum(result.values())
    result["Final Score Norm"] = result["Final Score"] / 10
    return result
