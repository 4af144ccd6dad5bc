"""MathVista testmini (https://arxiv.org/abs/2310.02255)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from internvl_chat.evaluation.metrics.mathvista import (
    PREFETCHED,
    MathItem,
    MathReading,
    read_answer,
    skill_table,
)
from internvl_chat.evaluation.metrics.tables import ScoreTable, csv_table, print_table
from internvl_chat.evaluation.task import ExportInput, Question, Score, ScoreInput
from internvl_chat.evaluation.tasks.tsv.common import (
    answer_table,
    asker,
    file_stem,
    judge_suffix,
    no_judge,
    question_of,
    tsv_task,
)
from internvl_chat.evaluation.tsv import literal, text_of

DATASET = "MathVista_MINI"
MAX_TOKENS = 128
"""Of a judge's reply."""


def item_of(row: Mapping[str, Any]) -> MathItem:
    """A row as it is checked; choices that are no list literal are none."""
    try:
        choices = literal(row.get("choices"))
    except ValueError:
        choices = ()
    precision = row.get("precision")
    return MathItem(
        question_type=text_of(row.get("question_type")),
        answer_type=text_of(row.get("answer_type")),
        answer="nan" if row.get("answer") is None else row["answer"],
        choices=tuple(choices) if isinstance(choices, list | tuple) else (),
        answer_option=None if row.get("answer_option") is None else text_of(row["answer_option"]),
        precision=_digits(precision),
    )


def _digits(cell: Any) -> int | None:
    try:
        return int(float(cell))
    except (TypeError, ValueError, OverflowError):
        return None


def skills_of(row: Mapping[str, Any], *, official: bool) -> list[str]:
    """The row's skills: a list literal, or a text that is one.

    A quoted text is gone through character by character, as the original does; ``official`` takes
    it whole.
    """
    cell = row.get("skills")
    if cell is None:
        return []
    try:
        skills = literal(cell)
    except ValueError:
        return [text_of(cell)]
    if isinstance(skills, str):
        return [skills] if official else list(skills)
    return [str(one) for one in skills] if isinstance(skills, list | tuple) else [text_of(cell)]


def table_of(
    questions: Sequence[Question], readings: Sequence[MathReading], *, official: bool
) -> ScoreTable:
    """Counts by skill and task."""
    rows = [
        (skills_of(one.record, official=official), text_of(one.record.get("task")))
        for one in questions
    ]
    return skill_table(rows, readings)


def score(given: ScoreInput) -> Score:
    """Answers prefetched or extracted, then checked."""
    official = given.rules == "official"
    readings = []
    for one in given.questions:
        answer = given.answers[one.id]
        fields = {"question": question_of(one.record), "response": answer}
        ask = asker(given.judge, "mathvista_extract", fields, max_tokens=MAX_TOKENS)
        later = given.rules == "later"
        item = item_of(one.record)
        readings.append(read_answer(item, answer, ask, later=later, official=official))
    table = table_of(given.questions, readings, official=official)
    unread = sum("no judge" in one.log for one in readings)
    pairs = list(zip(given.questions, readings, strict=True))
    strange = sum(
        text_of(one.record.get("question_type")) == "multi_choice"
        and not item_of(one.record).choices
        for one in given.questions
    )
    return Score(
        metrics=table.values(),
        printed=print_table(table),
        per_sample={one.id: float(reading.hit) for one, reading in pairs},
        notes=(
            *no_judge(unread, "answers that are not prefetched count as wrong"),
            *((f"{strange} multiple-choice rows have no list of choices: wrong",) * bool(strange)),
        ),
        added_columns={one.id: {"res": got.extracted, "log": got.log} for one, got in pairs},
    )


def export(given: ExportInput) -> dict[str, str | bytes]:
    """The table of answers; with a score, that with ``res`` and ``log``, and the counts."""
    stem = file_stem(given, DATASET)
    files: dict[str, str | bytes] = {f"{stem}.xlsx": answer_table(given)}
    if given.score is not None:
        readings = [_reading(given.score, one) for one in given.questions]
        table = table_of(given.questions, readings, official=given.rules == "official")
        suffix = judge_suffix(given)
        files[f"{stem}_{suffix}.xlsx"] = answer_table(given, scored=True)
        files[f"{stem}_{suffix}_score.csv"] = csv_table(table)
    return files


def _reading(score: Score, question: Question) -> MathReading:
    added = score.added_columns[question.id]
    hit = bool(score.per_sample[question.id])
    return MathReading(added["res"], added["log"] == PREFETCHED, hit, added["log"])


MATHVISTA_MINI = tsv_task(
    DATASET,
    prompt=question_of,
    title="MathVista testmini",
    columns="answer, question_type, answer_type, choices, answer_option, task, skills, category",
    metric="accuracy of extracted answers",
    score=score,
    export=export,
    judge="gpt-4-turbo",
    published="57.5",
    source="https://github.com/lupantech/MathVista",
    whole_numbers=True,
)
