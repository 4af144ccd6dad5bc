"""MathVista testmini (https://arxiv.org/abs/2310.02255)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from internvl_chat.evaluation.metrics.mathvista import (
    PREFETCHED,
    MathItem,
    MathReading,
    check,
    prefetch,
    skill_table,
)
from internvl_chat.evaluation.metrics.tables import ScoreTable, print_table
from internvl_chat.evaluation.task import ExportInput, Question, Score, ScoreInput
from internvl_chat.evaluation.tasks.tsv.common import (
    JUDGE_TEMPERATURES,
    JUDGES_LATER,
    answer_table,
    ask_by_id,
    file_stem,
    judge_suffix,
    judgements,
    lacking,
    no_judge,
    plain_answers,
    question_of,
    request,
    score_file,
    tsv_task,
)
from internvl_chat.evaluation.tsv import literal, text_of

DATASET = "MathVista_MINI"
MAX_TOKENS = 128
"""Of a judge's reply."""
NO_JUDGE_LOG = "not prefetched, no judge"
EXTRACTED = "Succeed"
"""What the original notes."""


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


def read_all(given: ScoreInput) -> dict[str, MathReading]:
    """What answers come to: prefetched, else extracted by a judge, then checked."""
    later, official = given.rules == "later", given.rules == "official"
    items = {one.id: item_of(one.record) for one in given.questions}
    answers = plain_answers(given)
    judged = judgements(given)
    taken: dict[str, tuple[str, str]] = {}
    requests = {}
    for one in given.questions:
        found = prefetch(items[one.id], answers[one.id], later=later, official=official)
        if found is not None:
            taken[one.id] = (found, PREFETCHED)
        elif one.id in judged:
            taken[one.id] = (_text(judged[one.id]["res"]), str(judged[one.id]["log"]))
        else:
            fields = {"question": question_of(one.record), "response": answers[one.id]}
            requests[one.id] = request("mathvista_extract", fields, max_tokens=MAX_TOKENS)
    replies = ask_by_id(given.judge, requests, str, JUDGE_TEMPERATURES)
    unread = NO_JUDGE_LOG if given.judge is None else "no reply of the judge"
    for name in requests:
        taken[name] = (replies[name], EXTRACTED) if name in replies else ("", unread)
    return {
        one.id: MathReading(
            extracted=taken[one.id][0],
            prefetched=taken[one.id][1] == PREFETCHED,
            hit=check(items[one.id], taken[one.id][0], later=later, official=official),
            log=taken[one.id][1],
        )
        for one in given.questions
    }


def _text(cell: Any) -> str:
    """What was extracted, from a table; a column of numbers makes 14.0 an integer."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return "" if cell is None else str(cell)


def score(given: ScoreInput) -> Score:
    """Share of answers that are right once extracted."""
    readings = read_all(given)
    done = [readings[one.id] for one in given.questions]
    table = table_of(given.questions, done, official=given.rules == "official")
    unread = sum(one.log == NO_JUDGE_LOG for one in done)
    strange = sum(
        text_of(one.record.get("question_type")) == "multi_choice"
        and not item_of(one.record).choices
        for one in given.questions
    )
    return Score(
        metrics=table.values(),
        printed=print_table(table),
        per_sample={name: float(one.hit) for name, one in readings.items()},
        notes=(
            *no_judge(unread, "answers that are not prefetched count as wrong"),
            *((f"{strange} multiple-choice rows have no list of choices: wrong",) * bool(strange)),
            *lacking(given.questions, "skills", "in no skill"),
        ),
        added_columns={
            name: {"res": one.extracted, "log": one.log} for name, one in readings.items()
        },
    )


def export(given: ExportInput) -> dict[str, str | bytes]:
    """The table of answers; with a score, that with ``res`` and ``log``, and the counts."""
    stem = file_stem(given, DATASET)
    files: dict[str, str | bytes] = {f"{stem}.{given.table_format}": answer_table(given)}
    if given.score is not None:
        readings = [_reading(given.score, one) for one in given.questions]
        table = table_of(given.questions, readings, official=given.rules == "official")
        suffix = judge_suffix(given)
        files[f"{stem}_{suffix}.{given.table_format}"] = answer_table(given, scored=True)
        files[f"{stem}_{suffix}_score.{given.score_format}"] = score_file(given, table)
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
    judge_by_rules=JUDGES_LATER,
    published="57.5",
    source="https://github.com/lupantech/MathVista",
    whole_numbers=True,
    judged=("res", "log"),
    rule_differences={
        "later": "an option's letter counts among the last four words alone, `answer is X` is read",
        "official": "`14.0` is the integer 14, a right 0 needs no judge, floats are rounded to the "
        "precision that is asked, lists can be right, a quoted skill is one",
    },
)
