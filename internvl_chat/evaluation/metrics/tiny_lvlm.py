"""Tiny LVLM-eHub: does the answer hold the truth, both normalised, as whole words?

Source: https://github.com/OpenGVLab/Multi-Modality-Arena (tiny_lvlm_evaluation). Its normaliser is
the later half of that of VQA: capitals, commas and question marks are still there when it starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from internvl_chat.evaluation.metrics.vqa_accuracy import normalize_words


def is_hit(answer: str, truths: Sequence[str]) -> bool:
    """Whether one of the truths stands in the answer between word boundaries.

    A truth of which nothing is left (``the``) stands in every answer that has a word.
    """
    said = normalize_words(answer)
    return any(re.search(rf"\b{re.escape(normalize_words(one))}\b", said) for one in truths)
