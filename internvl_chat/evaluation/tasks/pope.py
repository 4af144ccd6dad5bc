"""POPE: is an object in the image? (https://arxiv.org/abs/2305.10355)"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import add_answer, read_records, require_text
from internvl_chat.evaluation.metrics.final_answer import final_answer
from internvl_chat.evaluation.metrics.first_verdict import first_verdict
from internvl_chat.evaluation.metrics.pope import Counts, reads_as_yes
from internvl_chat.evaluation.sources import (
    ImageFile,
    read_jsonl,
    require_answer,
    require_plain,
)
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.wording import (
    CHAIN_OF_THOUGHT,
    COT_TOKENS,
    FIRST_VERDICT,
    NO_COT_IN_2024,
    SHORT,
)

CATEGORIES = ("random", "popular", "adversarial")
"""In the guide's order; the original prints in that of a directory listing."""
QUESTIONS = "data/pope/llava_pope_test.jsonl"
IMAGES = "data/pope/val2014"
LABELS = "data/pope/coco/coco_pope_{category}.json"


def load(root: DataRoot, rules: Rules, *, reasons: bool = False) -> list[Question]:
    """Questions with their labels, which stand at the same position of the category's file.

    With ``reasons`` they are worded as ``--cot`` does it.
    """
    labels = {category: _labels(root.folder, category) for category in CATEGORIES}
    met = dict.fromkeys(CATEGORIES, 0)
    questions = []
    for record, where in read_jsonl(root.folder / QUESTIONS):
        category = require_plain(record, "category", where)
        if category not in labels:
            known = ", ".join(CATEGORIES)
            raise DatasetError(f"category is {category!r}, want {known}", where=where)
        number = met[category]
        met[category] += 1
        if number >= len(labels[category]):
            raise DatasetError(
                f"question {number + 1} of {category}, its label file has {number} lines",
                where=where,
                fix=f"Take {LABELS.format(category=category)} of the same release.",
            )
        text = require_text(record, "text", where)
        questions.append(
            Question(
                id=str(require_plain(record, "question_id", where)),
                prompt=_prompt(text, rules, reasons),
                images=(
                    ImageFile(str(root.folder / IMAGES / require_text(record, "image", where))),
                ),
                record={
                    "question_id": record["question_id"],
                    "category": category,
                    "is_yes": labels[category][number] != "no",
                },
            )
        )
    return questions


def _prompt(text: str, rules: Rules, reasons: bool) -> str:
    if reasons:
        return CHAIN_OF_THOUGHT.replace("{question}", text.replace(SHORT, "").strip())
    return text.strip() if rules == "later" else f"{text} "


def _labels(folder: Path, category: str) -> list[str]:
    path = folder / LABELS.format(category=category)
    return [require_text(record, "label", where) for record, where in read_jsonl(path)]


def score(given: ScoreInput, *, reasons: bool = False) -> Score:
    """Counts by category; their mean F1 under the later rules and as the guide does by hand.

    With ``reasons`` only the final answer of each is read.
    """
    metrics: dict[str, float | None] = {}
    per_sample: dict[str, float] = {}
    lines = ["Evaluating pope ..."]
    f1s: list[float] = []
    stated = _stated(given.answers, reasons)
    for category in CATEGORIES:
        asked = [one for one in given.questions if one.record["category"] == category]
        if not asked:
            continue
        truth = [bool(one.record["is_yes"]) for one in asked]
        read = first_verdict if given.rules == "official" else reads_as_yes
        readings = [None if one.id in given.unanswered else read(stated[one.id]) for one in asked]
        # What nobody answered, or says neither, is wrong.
        said = [
            not is_yes if reading is None else reading
            for reading, is_yes in zip(readings, truth, strict=True)
        ]
        counts = Counts.of(said, truth)
        per_sample |= {one.id: float(a == b) for one, a, b in zip(asked, said, truth, strict=True)}
        metrics |= _metrics(category, counts)
        lines += _lines(category, counts)
        f1s.append(counts.f1)
    overall = round(100 * sum(f1s) / len(f1s), 2) if f1s else 0.0
    metrics["overall_f1"] = overall
    if given.rules == "later":
        lines.append(f"Overall F1: {overall:.2f}")
    return Score(
        metrics=metrics,
        printed="\n".join(lines) + "\n",
        per_sample=per_sample,
        notes=(NO_COT_IN_2024,) if reasons else (),
    )


def _stated(answers: Mapping[str, str], reasons: bool) -> Mapping[str, str]:
    return {name: final_answer(text) for name, text in answers.items()} if reasons else answers


def _metrics(category: str, counts: Counts) -> dict[str, float]:
    values = {
        "TP": counts.tp,
        "FP": counts.fp,
        "TN": counts.tn,
        "FN": counts.fn,
        "accuracy": counts.accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "yes_ratio": counts.yes_ratio,
    }
    return {f"{category}/{name}": value for name, value in values.items()}


def _lines(category: str, counts: Counts) -> list[str]:
    row = (counts.f1, counts.accuracy, counts.precision, counts.recall, counts.yes_ratio)
    return [
        f"Category: {category}, # samples: {counts.num}",
        "TP\tFP\tTN\tFN\t",
        f"{counts.tp}\t{counts.fp}\t{counts.tn}\t{counts.fn}",
        f"Accuracy: {counts.accuracy}",
        f"Precision: {counts.precision}",
        f"Recall: {counts.recall}",
        f"F1 score: {counts.f1}",
        f"Yes ratio: {counts.yes_ratio}",
        ", ".join(f"{value:.3f}" for value in row),
        "====================================",
    ]


def export(given: ExportInput, *, reasons: bool = False) -> Mapping[str, str]:
    """``pope_{stamp}.json``, a list with an object per question.

    Later the whole answer stands beside what was read of it, the same without ``reasons``.
    """
    records: list[dict[str, Any]] = []
    for one in given.questions:
        whole = given.answers[one.id]
        text = final_answer(whole) if reasons else whole
        record = {"question_id": one.record["question_id"], "text": text}
        if given.rules == "later":
            record["text_orig"] = whole
        records.append(record | {"model_id": given.checkpoint, "metadata": {}})
    return {f"pope_{given.stamp}.json": json.dumps(records)}


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such a list, by ``question_id``; later files keep the raw text apart."""
    answers: dict[str, str] = {}
    for path in files:
        for record, where in read_records(path):
            identity = str(require_plain(record, "question_id", where))
            name = "text_orig" if "text_orig" in record else "text"
            add_answer(answers, identity, require_answer(record, name, where), where)
    return answers


_DIRECT = TaskSpec(
    id="pope",
    suite="internvl",
    title="POPE",
    data=(
        DataFile(path=QUESTIONS, format="JSON lines: question_id, image, text, category"),
        *(
            DataFile(path=LABELS.format(category=one), format="JSON lines: label yes or no")
            for one in CATEGORIES
        ),
        DataFile(path=IMAGES, format="COCO val2014 images", is_folder=True),
    ),
    load=load,
    generation=Generation(max_new_tokens=100),
    metric="F1 of yes and no",
    score=score,
    rules=("2024", "later", "official"),
    rule_differences={
        "later": "the prompt has no space at its end; `Overall F1: …` is printed last",
        "official": f"{FIRST_VERDICT}; an answer without any is wrong, not a yes",
    },
    export=export,
    read_answers=read_answers,
    published="88.6",
    source="https://github.com/RUCAIBox/POPE",
)
POPE = replace(
    _DIRECT,
    reasoning=replace(
        _DIRECT,
        load=partial(load, reasons=True),
        generation=Generation(max_new_tokens=COT_TOKENS),
        score=partial(score, reasons=True),
        export=partial(export, reasons=True),
        rules=("later", "official"),
        rule_differences={"official": _DIRECT.rule_differences["official"]},
        published="",
    ),
)
