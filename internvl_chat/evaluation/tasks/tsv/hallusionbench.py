"""HallusionBench (https://arxiv.org/abs/2310.14566), and other yes-or-no TSV sets by path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from internvl_chat.evaluation.metrics.tables import ScoreTable, print_table
from internvl_chat.evaluation.metrics.yes_no import (
    YesNo,
    YesNoItem,
    hallusion_table,
    rating_table,
    read_verdict,
    read_yes_no,
)
from internvl_chat.evaluation.task import (
    ExportInput,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.tsv.common import (
    JUDGE_TEMPERATURES,
    JUDGES_LATER,
    answer_table,
    ask_by_id,
    file_stem,
    judgements,
    lacking,
    no_judge,
    plain_answers,
    question_of,
    request,
    score_file,
    tsv_task,
    yes_no_prompt,
)
from internvl_chat.evaluation.tasks.wording import SHORT
from internvl_chat.evaluation.tsv import text_of

DIFFERENCES: Mapping[Rules, str] = {
    "later": "a period after a digit stays, which matters where a long numbered list comes first",
    "official": "case and outer spaces of the right answer do not matter",
}


def hallusion_prompt(row: Mapping[str, object]) -> str:
    """The question and both instructions."""
    return f"{question_of(row)} Please answer yes or no. {SHORT}"


def items_of(questions: Sequence[Question], rights: Mapping[str, float]) -> list[YesNoItem]:
    """Rows as they are counted."""
    return [
        YesNoItem(
            index=one.id,
            category=_name(one, "category"),
            l2_category=_name(one, "l2-category"),
            right=bool(rights[one.id]),
        )
        for one in questions
    ]


def _name(question: Question, column: str) -> str | None:
    cell = question.record.get(column)
    return None if cell is None else text_of(cell)


def read_all(given: ScoreInput) -> tuple[dict[str, str], int]:
    """Yes, No or Unknown by question id: by rules, then by a judge; how many no judge was asked."""
    later = given.rules == "later"
    answers = plain_answers(given)
    read = {name: str(read_yes_no(answer, later=later)) for name, answer in answers.items()}
    for name, said in judgements(given).items():
        read[name] = text_of(said["extracted"]) if read[name] == "Unknown" else read[name]
    waiting = [one for one in given.questions if read[one.id] == "Unknown"]
    requests = {
        one.id: request(
            "yes_no", {"question": question_of(one.record), "prediction": answers[one.id]}
        )
        for one in waiting
    }

    def verdict(reply: str) -> YesNo | None:
        return read_verdict(reply, later=later)

    read |= ask_by_id(given.judge, requests, verdict, JUDGE_TEMPERATURES)
    return read, len(waiting) if given.judge is None else 0


def score_yes_no(given: ScoreInput, table_of: Callable[[Sequence[YesNoItem]], ScoreTable]) -> Score:
    """Answers read as yes or no; unknown is wrong."""
    read, unread = read_all(given)
    hits: dict[str, float] = {}
    for one in given.questions:
        gold = text_of(one.record.get("answer"))
        gold = gold.strip().capitalize() if given.rules == "official" else gold
        hits[one.id] = float(read[one.id] == gold)
    table = table_of(items_of(given.questions, hits))
    return Score(
        metrics=table.values(),
        printed=print_table(table),
        per_sample=hits,
        notes=(
            *no_judge(unread, "answers that rules cannot read count as Unknown, which is wrong"),
            *lacking(given.questions, "answer", "counted as wrong"),
        ),
        added_columns={
            name: {"extracted": read[name], "score": bool(hit)} for name, hit in hits.items()
        },
    )


def score_hallusion(given: ScoreInput) -> Score:
    """aAcc, fAcc and qAcc; the guide's figure is the mean of the three over all rows."""
    score = score_yes_no(given, hallusion_table)
    overall = [score.metrics[f"Overall|{name}"] for name in ("aAcc", "fAcc", "qAcc")]
    notes = list(score.notes)
    strange = sum(one.parts is None for one in items_of(given.questions, score.per_sample))
    if strange:
        notes.append(f"{strange} indices do not name set, figure and question: in aAcc alone")
    metrics = dict(score.metrics)
    if None not in overall:
        numbers = [number for number in overall if number is not None]
        metrics["result"] = sum(numbers) / 3
        shown = " + ".join(f"{number:g}" for number in numbers)
        notes.append(f"result = ({shown}) / 3 = {metrics['result']:.1f}")
    return Score(
        metrics=metrics,
        printed=score.printed,
        per_sample=score.per_sample,
        notes=tuple(notes),
        added_columns=score.added_columns,
    )


def export_yes_no(
    given: ExportInput, dataset: str, table_of: Callable[[Sequence[YesNoItem]], ScoreTable]
) -> dict[str, str | bytes]:
    """The table of answers; with a score, that with ``extracted`` and ``score``, and the rates."""
    stem = file_stem(given, dataset)
    files: dict[str, str | bytes] = {f"{stem}.{given.table_format}": answer_table(given)}
    if given.score is not None:
        files[f"{stem}_auxmatch.{given.table_format}"] = answer_table(given, scored=True)
        files[f"{stem}_score.{given.score_format}"] = score_file(
            given, table_of(items_of(given.questions, given.score.per_sample))
        )
    return files


def yes_no_task(dataset: str, *, file: str | None = None) -> TaskSpec:
    """Another yes-or-no set."""
    return tsv_task(
        dataset,
        prompt=yes_no_prompt,
        columns="answer (Yes or No); category, l2-category",
        metric="accuracy of yes and no",
        score=lambda given: score_yes_no(given, rating_table),
        export=lambda given: export_yes_no(given, dataset, rating_table),
        file=file,
        judge="chatgpt-0125",
        judge_by_rules=JUDGES_LATER,
        judged=("extracted",),
        rule_differences=DIFFERENCES,
    )


def hallusion_task(dataset: str, *, file: str | None = None, published: str = "") -> TaskSpec:
    """HallusionBench, or a part of it by path."""
    return tsv_task(
        dataset,
        prompt=hallusion_prompt,
        columns="answer (Yes or No), category, l2-category; index VD_illusion_1_0_2_1",
        metric="accuracy of answers, figures, questions",
        score=score_hallusion,
        export=lambda given: export_yes_no(given, dataset, hallusion_table),
        file=file,
        judge="chatgpt-0125",
        judge_by_rules=JUDGES_LATER,
        judged=("extracted",),
        rule_differences=DIFFERENCES,
        published=published,
        source="https://github.com/tianyi-lab/HallusionBench",
    )


HALLUSIONBENCH = hallusion_task("HallusionBench", published="48.1")
