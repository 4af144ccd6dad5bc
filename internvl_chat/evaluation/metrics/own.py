"""Scores of the metrics that own data can be measured by: one answer against its references."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from internvl_chat.evaluation.judge import JudgeRequest, ask_until
from internvl_chat.evaluation.metrics.anls import anls
from internvl_chat.evaluation.metrics.bleu_rouge import (
    ROUGE_TYPES,
    Samples,
    bleu_tokenizer,
    corpus_bleu,
    rouge,
    sentence_bleu,
)
from internvl_chat.evaluation.metrics.iou import compare_boxes, parse_boxes
from internvl_chat.evaluation.metrics.letters import LETTERS, named_letter
from internvl_chat.evaluation.metrics.relaxed_accuracy import relaxed_accuracy
from internvl_chat.evaluation.metrics.text import Confusion, clean, exact_match
from internvl_chat.evaluation.metrics.vqa_accuracy import vqa_accuracy
from internvl_chat.evaluation.task import Judge

OwnMetric = Literal["exact", "relaxed", "anls", "vqa", "iou", "choice", "bleu", "rouge", "judge"]
OWN_METRICS: tuple[OwnMetric, ...] = get_args(OwnMetric)
VALUES: Mapping[OwnMetric, tuple[str, ...]] = {
    **{name: (name,) for name in OWN_METRICS},
    "iou": ("iou@0.5", "iou"),
    "rouge": ROUGE_TYPES,
}
"""Names of a metric's values; the first one is the score of a question."""
PERCENT = frozenset({"bleu"})
"""Values from 0 to 100; all others go from 0 to 1."""

_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):、:][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_NO_LETTER = "(no letter)"
_GRADE = re.compile(r"(?<![\d.])(?:1(?:\.0+)?|0(?:\.\d+)?)(?![\d.]*\d)")
JUDGE_TEMPERATURES = (0.0, 0.5, 1.0)
"""Of the tries until a judge gives a number."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """An answer and what it is compared with."""

    question: str
    references: tuple[str, ...]
    """Each is right; at least one."""
    answer: str


Values = Mapping[str, float]
"""By the names of :data:`VALUES`; empty where a metric does not apply to a question."""


def score_each(metric: OwnMetric, samples: Sequence[Compared], judge: Judge | None) -> list[Values]:
    """Values of every question under one metric.

    Args:
        metric: its name.
        samples: any number.
        judge: for ``judge``; without one the metric applies to no question.
    """
    if metric == "bleu":
        pairs = pairs_of(samples)
        scores = sentence_bleu(pairs, tokenize=bleu_tokenizer(pairs)) if pairs else []
        return [{"bleu": score} for score in scores]
    if metric == "rouge":
        return [*rouge(pairs_of(samples))]
    if metric == "judge":
        return [{} for _ in samples] if judge is None else _judged(samples, judge)
    return [_SCORERS[metric](sample) for sample in samples]


def value_of_all(
    name: str, samples: Sequence[Compared], each: Sequence[Values], *, tokenize: str
) -> float | None:
    """One number for many questions: the mean, each question counting once, but corpus BLEU.

    Args:
        name: of a value.
        samples: the questions.
        each: their values, in the same order.
        tokenize: of BLEU.

    Returns:
        None where the value applies to no question.
    """
    if name == "bleu":
        return corpus_bleu(pairs_of(samples), tokenize=tokenize) if samples else None
    found = [values[name] for values in each if name in values]
    return sum(found) / len(found) if found else None


def pairs_of(samples: Sequence[Compared]) -> Samples:
    """As the BLEU and ROUGE functions take them."""
    return [(sample.answer, sample.references) for sample in samples]


def confusion(metric: OwnMetric, samples: Sequence[Compared]) -> Confusion | None:
    """Truth against answer under ``exact`` or ``choice``; None if no truth comes twice."""
    label = _exact_labels if metric == "exact" else _choice_labels
    pairs = [pair for pair in map(label, samples) if pair[0] != _NO_LETTER]
    truths = [truth for truth, _ in pairs]
    return Confusion.of(pairs) if len(set(truths)) < len(truths) else None


# ---- one answer -----------------------------------------------------------------------------


def _exact(sample: Compared) -> Values:
    return {"exact": float(any(exact_match(sample.answer, one) for one in sample.references))}


def _exact_labels(sample: Compared) -> tuple[str, str]:
    truth = clean(sample.references[0])
    return truth, truth if _exact(sample)["exact"] else clean(sample.answer)


def _iou(sample: Compared) -> Values:
    """Of the first reference that holds boxes; no value if none does."""
    given = parse_boxes(sample.answer)
    found = [boxes for boxes in map(parse_boxes, sample.references) if boxes]
    if not found:
        return {}
    score = compare_boxes(given, found[0])
    return {"iou@0.5": float(score.all_hit), "iou": score.mean_iou}


def _relaxed(sample: Compared) -> Values:
    """Within 5 % of the truth, as the paper has it."""
    return {"relaxed": float(any(relaxed_accuracy(sample.answer, r) for r in sample.references))}


def _anls(sample: Compared) -> Values:
    """Surplus white space makes no answer more alike."""
    return {"anls": anls(sample.references, sample.answer, lengths="compared")}


def _vqa(sample: Compared) -> Values:
    """Of ten references the official accuracy; one is compared once both are normalised."""
    return {"vqa": vqa_accuracy(sample.answer, sample.references)}


# ---- choices --------------------------------------------------------------------------------


def options_in(question: str) -> dict[str, str]:
    """Lettered options, one a line, as ``A. cat``, ``A) cat``, ``(A) cat`` or ``A: cat``.

    >>> options_in("What is it?\\nA. cat\\nB. dog")
    {'A': 'cat', 'B': 'dog'}
    """
    return dict(_OPTION.findall(question))


def _choice(sample: Compared) -> Values:
    """No value where the truth names no option."""
    truth, answer = _choice_labels(sample)
    return {} if truth == _NO_LETTER else {"choice": float(truth == answer)}


def _choice_labels(sample: Compared) -> tuple[str, str]:
    options = options_in(sample.question) or LETTERS
    truths = [named_letter(reference, options) for reference in sample.references]
    truths = [letter for letter in truths if letter] or [_NO_LETTER]
    answer = named_letter(sample.answer, options) or _NO_LETTER
    return truths[0], truths[0] if answer in truths else answer


_SCORERS: Mapping[OwnMetric, Callable[[Compared], Values]] = {
    "exact": _exact,
    "relaxed": _relaxed,
    "anls": _anls,
    "vqa": _vqa,
    "iou": _iou,
    "choice": _choice,
}


# ---- judge ----------------------------------------------------------------------------------


def _judged(samples: Sequence[Compared], judge: Judge) -> list[Values]:
    """Grades from 0 to 1; no value where none could be had.

    The prompt is MM-Vet's, which knows several right answers as ``<OR>``.
    """
    requests = [
        JudgeRequest(
            key="mmvet",
            fields={
                "question": one.question,
                "ground_truth": " <OR> ".join(one.references),
                "prediction": one.answer,
            },
            temperature=JUDGE_TEMPERATURES[0],
            max_tokens=16,
        )
        for one in samples
    ]
    grades = ask_until(judge, requests, read_grade, temperatures=JUDGE_TEMPERATURES)
    return [{} if grade is None else {"judge": grade} for grade in grades]


def read_grade(reply: str) -> float | None:
    """The first number from 0 to 1 in a judge's reply."""
    found = _GRADE.search(reply)
    return float(found[0]) if found else None
