"""OCRBench (https://arxiv.org/abs/2305.07895), and other TSV sets with short answers by path."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from internvl_chat.evaluation.metrics.multiple_choice import accuracy_table
from internvl_chat.evaluation.metrics.ocrbench import CATEGORIES, accepted_texts, is_hit, totals
from internvl_chat.evaluation.metrics.tables import print_table
from internvl_chat.evaluation.task import ExportInput, Question, Score, ScoreInput, TaskSpec
from internvl_chat.evaluation.tasks.tsv.common import (
    answer_table,
    file_stem,
    lacking,
    plain_answers,
    score_file,
    short_prompt,
    tsv_task,
)
from internvl_chat.evaluation.tsv import literal, text_of, texts_of

DATASET = "OCRBench"


def _accepted(question: Question, *, official: bool) -> tuple[list[str], bool]:
    """The accepted texts, and whether they are a literal; none where the cell is missing."""
    cell = question.record.get("answer")
    if cell is None:
        return [], True
    try:
        return accepted_texts(literal(cell), official=official), not isinstance(cell, int | float)
    except ValueError:
        return [text_of(cell)], False


def _category(question: Question) -> str | None:
    cell = question.record.get("category")
    return None if cell is None else text_of(cell)


def score(given: ScoreInput) -> Score:
    """A point for each answer that holds an accepted text."""
    hits: dict[str, float] = {}
    answers = plain_answers(given)
    unread = 0
    for one in given.questions:
        accepted, is_literal = _accepted(one, official=given.rules == "official")
        unread += not is_literal
        hits[one.id] = float(is_hit(answers[one.id], accepted, _category(one)))
    result = _totals(given.questions, hits)
    unknown = sum(_category(one) not in CATEGORIES for one in given.questions)
    return Score(
        metrics=result,
        printed=json.dumps(result, indent=4),
        per_sample=hits,
        notes=(
            *((f"{unread} answers are no list literal: taken as one text",) * bool(unread)),
            *((f"{unknown} rows are of no known category: in no sum",) * bool(unknown)),
            *lacking(given.questions, "answer", "counted as wrong"),
        ),
    )


def _totals(questions: Sequence[Question], hits: dict[str, float]) -> dict[str, float]:
    points = Counter(str(_category(one)) for one in questions if hits[one.id])
    return totals(points)


def export(given: ExportInput) -> dict[str, str | bytes]:
    """The table of answers; with a score, the result as JSON."""
    stem = file_stem(given, DATASET)
    files: dict[str, str | bytes] = {f"{stem}.{given.table_format}": answer_table(given)}
    if given.score is not None:
        result = _totals(given.questions, dict(given.score.per_sample))
        files[f"{stem}_score.json"] = json.dumps(result, indent=4, ensure_ascii=False)
    return files


OCRBENCH = tsv_task(
    DATASET,
    prompt=short_prompt,
    columns="answer (list of accepted texts), category",
    metric="accepted text in the answer",
    score=score,
    export=export,
    rule_differences={
        "official": "a quoted text in place of the list of accepted texts is one text, not its "
        "characters"
    },
    published="598",
    source="https://github.com/Yuliang-Liu/MultimodalOCR",
)


# -- other sets ----------------------------------------------------------------------------------


def _bare(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def score_short(given: ScoreInput) -> Score:
    """Right if the answer is an accepted one, whatever the case, spaces and final period."""
    hits = {
        one.id: float(
            one.record.get("answer") is not None
            and _bare(given.answers[one.id]) in map(_bare, texts_of(one.record["answer"]))
        )
        for one in given.questions
    }
    table = accuracy_table(
        [one.record for one in given.questions], [hits[one.id] for one in given.questions]
    )
    return Score(
        metrics=table.values(),
        printed=print_table(table),
        per_sample=hits,
        notes=lacking(given.questions, "answer", "counted as wrong"),
    )


def short_task(dataset: str, *, file: str | None = None) -> TaskSpec:
    """Another set with short answers."""

    def export_short(given: ExportInput) -> dict[str, str | bytes]:
        stem = file_stem(given, dataset)
        files: dict[str, str | bytes] = {f"{stem}.{given.table_format}": answer_table(given)}
        if given.score is not None:
            hits = [given.score.per_sample[one.id] for one in given.questions]
            table = accuracy_table([one.record for one in given.questions], hits)
            files[f"{stem}_acc.{given.score_format}"] = score_file(given, table)
        return files

    return tsv_task(
        dataset,
        prompt=short_prompt,
        columns="answer (text or list of accepted texts); category, l2-category, split",
        metric="exact match",
        score=score_short,
        export=export_short,
        file=file,
    )
