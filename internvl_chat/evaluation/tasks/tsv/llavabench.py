"""LLaVA-Bench in the wild as VLMEvalKit has it (https://arxiv.org/abs/2304.08485)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from internvl_chat.evaluation.judge import JudgeRequest, ask_all
from internvl_chat.evaluation.metrics.llavabench_tsv import (
    CATEGORIES,
    NO_MARKS,
    marks_table,
    read_marks,
)
from internvl_chat.evaluation.metrics.tables import ScoreTable, print_table
from internvl_chat.evaluation.task import ExportInput, Question, Score, ScoreInput
from internvl_chat.evaluation.tasks.tsv.common import (
    MAX_TOKENS,
    answer_table,
    file_stem,
    judgements,
    lacking,
    plain_answers,
    question_of,
    score_file,
    tsv_task,
)
from internvl_chat.evaluation.tsv import text_of, texts_of

DATASET = "LLaVABench"
TEMPERATURE = 0.2


def prompt(row: Mapping[str, Any]) -> str:
    """The question, and that detail is wanted."""
    return f"{question_of(row)}\nAnswer this question in detail."


def _category(question: Question) -> str | None:
    cell = question.record.get("category")
    return None if cell is None else text_of(cell)


def review_request(question: Question, answer: str) -> JudgeRequest:
    """What a judge is asked: to mark GPT-4's answer and ours."""
    row = question.record
    category = _category(question)
    fields = {
        "context": "\n".join(texts_of(row.get("caption"))),
        "question": question_of(row),
        "answer_1": text_of(row.get("gpt4_ans")),
        "answer_2": answer,
        "category": category if category in CATEGORIES else "conv",
    }
    return JudgeRequest(
        key="llava_bench", fields=fields, temperature=TEMPERATURE, max_tokens=MAX_TOKENS
    )


def marks_of(given: ScoreInput) -> dict[str, tuple[float, float]]:
    """GPT-4's marks and ours by question id; absent without a judge."""
    answers = plain_answers(given)
    marks = {
        name: (float(said["gpt4_score"]), float(said["score"]))
        for name, said in judgements(given).items()
        if None not in (said["gpt4_score"], said["score"])
    }
    waiting = [one for one in given.questions if one.id not in marks]
    if given.judge is not None:
        requests = [review_request(one, answers[one.id]) for one in waiting]
        reviews = ask_all(given.judge, requests)
        marks |= {one.id: read_marks(text) for one, text in zip(waiting, reviews, strict=True)}
    return marks


def table_of(
    questions: Sequence[Question], marks: Sequence[tuple[float, float]], *, official: bool
) -> ScoreTable:
    """Relative scores and means."""
    return marks_table([_category(one) for one in questions], marks, official=official)


def score(given: ScoreInput) -> Score:
    """A judge's marks for GPT-4's answers and ours; nothing without one."""
    found = marks_of(given)
    if len(found) < len(given.questions):
        note = f"no judge: {len(given.questions) - len(found)} answers have no mark, none is scored"
        return Score(metrics={}, printed="", per_sample={}, notes=(note,))
    marks = [found[one.id] for one in given.questions]
    table = table_of(given.questions, marks, official=given.rules == "official")
    unread = marks.count(NO_MARKS)
    effect = "left out" if given.rules == "official" else "they enter the means as -1"
    strange = sum(_category(one) not in CATEGORIES for one in given.questions)
    pairs = list(zip(given.questions, marks, strict=True))
    return Score(
        metrics=table.values(),
        printed=print_table(table),
        per_sample={one.id: pair[1] for one, pair in pairs},
        notes=(
            *((f"{unread} reviews hold no two marks: {effect}",) * bool(unread)),
            *((f"{strange} rows are of another category: judged as conv",) * bool(strange)),
            *lacking(given.questions, "question", "asked without one"),
        ),
        added_columns={one.id: {"gpt4_score": pair[0], "score": pair[1]} for one, pair in pairs},
    )


def export(given: ExportInput) -> dict[str, str | bytes]:
    """The table of answers; with marks, that with both, and the means."""
    stem = file_stem(given, DATASET)
    files: dict[str, str | bytes] = {f"{stem}.{given.table_format}": answer_table(given)}
    if given.score is not None and given.score.added_columns:
        added = [given.score.added_columns[one.id] for one in given.questions]
        marks = [(one["gpt4_score"], one["score"]) for one in added]
        table = table_of(given.questions, marks, official=given.rules == "official")
        files[f"{stem}_openai_result.{given.table_format}"] = answer_table(given, scored=True)
        files[f"{stem}_score.{given.score_format}"] = score_file(given, table)
    return files


LLAVABENCH = tsv_task(
    DATASET,
    prompt=prompt,
    title="LLaVA-Bench in the wild (TSV)",
    columns="category (conv, detail, complex), caption, gpt4_ans",
    metric="judged, relative to GPT-4",
    score=score,
    export=export,
    judge="gpt-4-turbo",
    judged=("gpt4_score", "score"),
    rule_differences={
        "later": "today's toolkit cannot score the set; it is scored as in 2024",
        "official": "a review without two marks is left out of the means instead of entering them "
        "as -1",
    },
    published="76.4",
    source="https://github.com/haotian-liu/LLaVA",
)
