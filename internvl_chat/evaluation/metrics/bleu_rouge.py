"""BLEU and ROUGE by the libraries that papers quote: sacrebleu and rouge-score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from internvl_chat.errors import ConfigError

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_HAN = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")

Samples = Sequence[tuple[str, Sequence[str]]]
"""(answer, references) of each question, at least one reference."""


def bleu_tokenizer(samples: Samples) -> str:
    """sacrebleu's tokenizer for these references: ``zh`` if most hold Chinese, else ``13a``."""
    chinese = sum(any(_HAN.search(text) for text in references) for _, references in samples)
    return "zh" if 2 * chinese > len(samples) else "13a"


def corpus_bleu(samples: Samples, *, tokenize: str) -> float:
    """BLEU of all answers together, 0 to 100 (https://aclanthology.org/W18-6319)."""
    longest = max(len(references) for _, references in samples)
    streams = [
        [references[n] if n < len(references) else None for _, references in samples]
        for n in range(longest)
    ]
    metric = _sacrebleu().BLEU(tokenize=tokenize)
    return _percent(metric.corpus_score([answer for answer, _ in samples], streams).score)


def sentence_bleu(samples: Samples, *, tokenize: str) -> list[float]:
    """BLEU of each answer, 0 to 100: orders that an answer is too short for are left out."""
    metric = _sacrebleu().BLEU(tokenize=tokenize, effective_order=True)
    return [
        _percent(metric.sentence_score(answer, list(references)).score)
        for answer, references in samples
    ]


def _percent(score: float) -> float:
    """sacrebleu's 100.00000000000004 is 100."""
    return min(float(score), 100.0)


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as err:
        raise ConfigError(
            "the metric bleu needs sacrebleu", fix='pip install "internvl-chat[eval]"'
        ) from err
    return metrics


class RougeTokenizer:
    """Words in lower case; each Chinese, Japanese or Korean character is one.

    rouge-score's own keeps only ``a-z0-9`` and scores every Chinese answer 0; on ASCII text both
    agree.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return _WORD.findall(text.lower())


def rouge(samples: Samples) -> list[dict[str, float]]:
    """ROUGE-1, -2 and -L of each answer: F1 without stemming, 0 to 1, the best reference counts.

    See https://aclanthology.org/W04-1013 and https://pypi.org/project/rouge-score.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as err:
        raise ConfigError(
            "the metric rouge needs rouge-score", fix='pip install "internvl-chat[eval]"'
        ) from err
    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=RougeTokenizer())
    scores = []
    for answer, references in samples:
        found = scorer.score_multi(list(references), answer)
        scores.append({name: float(found[name].fmeasure) for name in ROUGE_TYPES})
    return scores
