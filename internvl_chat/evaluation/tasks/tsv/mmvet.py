"""MM-Vet (https://arxiv.org/abs/2308.02490) with a judge of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from internvl_chat.evaluation.metrics.mmvet import (
    CAPABILITIES,
    mark_tables,
    read_mark,
)
from internvl_chat.evaluation.metrics.tables import ScoreTable, print_table
from internvl_chat.evaluation.task import ExportInput, Question, Score, ScoreInput
from internvl_chat.evaluation.tasks.tsv.common import (
    JUDGE_TEMPERATURES,
    answer_table,
    ask_by_id,
    file_stem,
    judge_suffix,
    judgements,
    lacking,
    plain_answers,
    question_of,
    request,
    score_file,
    tsv_task,
)
from internvl_chat.evaluation.tsv import text_of

DATASET = "MMVet"
MAX_TOKENS = 3
MAX_TOKENS_LATER = 2048


def tables_of(
    questions: Sequence[Question], marks: Mapping[str, float], *, official: bool
) -> tuple[ScoreTable, ScoreTable]:
    """Means by capability and by combination; a row without category counts in Overall alone."""
    cells = [one.record.get("category") for one in questions]
    categories = ["(none)" if cell is None else text_of(cell) for cell in cells]
    return mark_tables(categories, [marks[one.id] for one in questions], official=official)


def marks_of(given: ScoreInput) -> dict[str, float | None]:
    """Marks by question id; None where the judge gave none that can be read, absent without one."""
    answers = plain_answers(given)
    marks: dict[str, float | None] = {
        name: read_mark(str(said["score"])) for name, said in judgements(given).items()
    }
    limit = MAX_TOKENS_LATER if given.rules == "later" else MAX_TOKENS
    requests = {
        one.id: request(
            "mmvet",
            {
                "question": question_of(one.record),
                "ground_truth": text_of(one.record.get("answer")),
                "prediction": answers[one.id],
            },
            max_tokens=limit,
        )
        for one in given.questions
        if one.id not in marks
    }
    if given.judge is not None:
        found = ask_by_id(given.judge, requests, read_mark, JUDGE_TEMPERATURES)
        marks |= {name: found.get(name) for name in requests}
    return marks


def score(given: ScoreInput) -> Score:
    """A judge's marks; nothing without one."""
    found = marks_of(given)
    if len(found) < len(given.questions):
        note = f"no judge: {len(given.questions) - len(found)} answers have no mark, none is scored"
        return Score(metrics={}, printed="", per_sample={}, notes=(note,))
    marks = {one.id: found[one.id] or 0.0 for one in given.questions}
    coarse, fine = tables_of(given.questions, marks, official=given.rules == "official")
    unmarked = sum(mark is None for mark in found.values())
    absent = [name for name in CAPABILITIES if coarse.values()[f"{name}|tot"] == 0]
    return Score(
        metrics={f"fine/{name}": value for name, value in fine.values().items()} | coarse.values(),
        printed=print_table(coarse),
        per_sample=marks,
        notes=(
            *((f"{unmarked} answers got no mark from 0 to 1 in five tries: 0",) * bool(unmarked)),
            *((f"no row asks for {', '.join(absent)}",) * bool(absent)),
            *lacking(given.questions, "category", "in Overall alone"),
            *lacking(given.questions, "question", "asked without one"),
        ),
        added_columns={
            one.id: {
                "score": marks[one.id],
                "log": "All 5 retries failed." if found[one.id] is None else "Succeed",
            }
            for one in given.questions
        },
    )


def export(given: ExportInput) -> dict[str, str | bytes]:
    """The table of answers; with marks, that with ``score`` and ``log``, and both means."""
    stem = file_stem(given, DATASET)
    files: dict[str, str | bytes] = {f"{stem}.{given.table_format}": answer_table(given)}
    if given.score is not None and given.score.per_sample:
        official = given.rules == "official"
        coarse, fine = tables_of(given.questions, given.score.per_sample, official=official)
        suffix = judge_suffix(given)
        files[f"{stem}_{suffix}.{given.table_format}"] = answer_table(given, scored=True)
        files[f"{stem}_{suffix}_score.{given.score_format}"] = score_file(given, coarse)
        files[f"{stem}_{suffix}_score_fine.{given.score_format}"] = score_file(given, fine)
    return files


MMVET_TSV = tsv_task(
    DATASET,
    prompt=question_of,
    title="MM-Vet (TSV)",
    columns="answer (with <AND>, <OR>), category (of rec, ocr, know, gen, spat, math)",
    metric="judged, 0 to 100",
    score=score,
    export=export,
    judge="gpt-4-turbo",
    judged=("score",),
    rule_differences={
        "later": "the judge may reply with 2,048 tokens instead of 3",
        "official": "a row that asks for one capability alone counts once there, not twice",
    },
    published="47.156",
    source="https://github.com/yuweihao/MM-Vet",
)
