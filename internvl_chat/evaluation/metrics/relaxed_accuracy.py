"""Relaxed accuracy of ChartQA: numbers within 5 %, other answers equal but for case.

Source: https://arxiv.org/abs/2203.10244, section 5.1, in the form of Pix2Struct and of the InternVL
evaluator, which hands prediction and gold answer over in each other's place.
"""

from __future__ import annotations

from typing import Literal

TOLERANCE = 0.05


def read_number(text: str) -> float | None:
    """The number that a text is, ``23.5%`` as 0.235; None if it is none (``$5``, ``1,000``)."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_accuracy(
    prediction: str, gold: str, *, relative_to: Literal["gold", "prediction"] = "gold"
) -> bool:
    """Whether an answer counts as right.

    Args:
        prediction: as generated; stripped here.
        gold: the right answer, taken as it is.
        relative_to: what the tolerance is a share of: the gold answer (textbook), or the prediction
            (evaluator). If that is zero, the texts are compared.
    """
    prediction = prediction.strip()
    said, wanted = read_number(prediction), read_number(gold)
    base = wanted if relative_to == "gold" else said
    if said is None or wanted is None or not base:
        return prediction.lower() == gold.lower()
    return abs(wanted - said) / abs(base) <= TOLERANCE  # False with nan and inf
