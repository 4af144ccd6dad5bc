"""MM-Vet (https://arxiv.org/abs/2308.02490) with a judge of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from internvl_chat.evaluation.metrics.mmvet import CAPABILITIES, ask_mark, mark_tables
from internvl_chat.evaluation.metrics.tables import ScoreTable, csv_table, print_table
from internvl_chat.evaluation.task import ExportInput, Question, Score, ScoreInput
from internvl_chat.evaluation.tasks.tsv.common import (
    answer_table,
    asker,
    file_stem,
    judge_suffix,
    lacking,
    question_of,
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


def score(given: ScoreInput) -> Score:
    """A judge's marks; nothing without one."""
    if given.judge is None:
        note = f"no judge: {len(given.questions)} answers are not scored"
        return Score(metrics={}, printed="", per_sample={}, notes=(note,))
    marks: dict[str, float] = {}
    logs: dict[str, str] = {}
    for one in given.questions:
        fields = {
            "question": question_of(one.record),
            "ground_truth": text_of(one.record.get("answer")),
            "prediction": given.answers[one.id],
        }
        limit = MAX_TOKENS_LATER if given.rules == "later" else MAX_TOKENS
        ask = asker(given.judge, "mmvet", fields, max_tokens=limit)
        if ask is not None:
            marks[one.id], logs[one.id] = ask_mark(ask)
    coarse, fine = tables_of(given.questions, marks, official=given.rules == "official")
    unmarked = sum("no mark" in log for log in logs.values())
    absent = [name for name in CAPABILITIES if coarse.values()[f"{name}|tot"] == 0]
    return Score(
        metrics={f"fine/{name}": value for name, value in fine.values().items()} | coarse.values(),
        printed=print_table(coarse),
        per_sample=marks,
        notes=(
            *((f"{unmarked} replies of the judge are no mark: 0",) * bool(unmarked)),
            *((f"no row asks for {', '.join(absent)}",) * bool(absent)),
            *lacking(given.questions, "category", "in Overall alone"),
            *lacking(given.questions, "question", "asked without one"),
        ),
        added_columns={
            one.id: {"score": marks[one.id], "log": logs[one.id]} for one in given.questions
        },
    )


def export(given: ExportInput) -> dict[str, str | bytes]:
    """The table of answers; with marks, that with ``score`` and ``log``, and both means."""
    stem = file_stem(given, DATASET)
    files: dict[str, str | bytes] = {f"{stem}.xlsx": answer_table(given)}
    if given.score is not None and given.score.per_sample:
        official = given.rules == "official"
        coarse, fine = tables_of(given.questions, given.score.per_sample, official=official)
        suffix = judge_suffix(given)
        files[f"{stem}_{suffix}.xlsx"] = answer_table(given, scored=True)
        files[f"{stem}_{suffix}_score.csv"] = csv_table(coarse)
        files[f"{stem}_{suffix}_score_fine.csv"] = csv_table(fine)
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
    published="47.156",
    source="https://github.com/yuweihao/MM-Vet",
)
