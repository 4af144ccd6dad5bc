"""Tiny LVLM-eHub: does the answer hold the truth, both normalised, as whole words?

Source: https://github.com/OpenGVLab/Multi-Modality-Arena (tiny_lvlm_evaluation). Its normaliser is
the later half of that of VQA: capitals, commas and question marks are still there when it starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from internvl_chat.evaluation.metrics.vqa_accuracy import (
    normalize_answer_by_wording,
    normalize_words,
)


def is_hit(answer: str, truths: Sequence[str]) -> bool:
    """Whether one of the truths stands in the answer between word boundaries.

    A truth of which nothing is left (``the``) stands in every answer that has a word.
    """
    said = normalize_words(answer)
    return any(re.search(rf"\b{re.escape(normalize_words(one))}\b", said) for one in truths)


def holds_truth(answer: str, truths: Sequence[str]) -> bool:
    """The same with the whole normaliser, as VQA words it, and words set apart by anything.

    A truth of which nothing is left (``the``) is looked for as it is written.
    """
    said = normalize_answer_by_wording(answer)
    for truth in truths:
        wanted = normalize_answer_by_wording(truth)
        text = said if wanted else answer.lower()
        literal = re.escape(wanted or truth.lower().strip())
        if literal and re.search(rf"(?<!\w){literal}(?!\w)", text):
            return True
    return False
