"""Multiple-choice TSV sets: MMStar, MMMU_DEV_VAL, RealWorldQA, and others by path."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_chat.evaluation.metrics.can_infer import can_infer
from internvl_chat.evaluation.metrics.multiple_choice import (
    CIRCLE,
    LETTERS,
    OTHER_ANSWERS,
    AskChoice,
    ChoiceItem,
    ChoiceReading,
    accuracy_table,
    options_of,
    read_choice,
    read_circle,
)
from internvl_chat.evaluation.metrics.tables import ScoreTable, csv_table, print_table
from internvl_chat.evaluation.task import (
    ExportInput,
    Judge,
    Question,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.tsv.common import (
    MAX_TOKENS,
    answer_table,
    choice_prompt,
    file_stem,
    has_chinese,
    judge_suffix,
    lacking,
    no_judge,
    question_of,
    tsv_task,
)
from internvl_chat.evaluation.tsv import text_of, texts_of


def is_mmmu(dataset: str) -> bool:
    """Whether open questions are scored as choices between the right answer and others."""
    return "MMMU" in dataset


def is_circular(dataset: str) -> bool:
    """Whether rows are rotations of one question."""
    return any(name in dataset.lower() for name in ("mmbench", "ccbench"))


def item_of(question: Question, answer: str, *, mmmu: bool, official: bool) -> ChoiceItem:
    """A row with its answer.

    MMMU: a row without option A is an open question; A becomes its answer and B any other. The
    original keeps a gold answer that is itself a letter, and takes a list as one text.
    """
    row = question.record
    options = options_of(row)
    gold = None if row.get("answer") is None else text_of(row["answer"])
    is_open = False
    if mmmu:
        if "A" not in options:
            is_open = official and not options
            options = {**options, "A": gold, "B": OTHER_ANSWERS}
            if gold is None:
                del options["A"]
            options = dict(sorted(options.items()))
        if is_open or gold is None or gold not in LETTERS or len(gold) != 1:
            gold = "A"
    return ChoiceItem(question.id, question_of(row), options, gold, answer, is_open=is_open)


def _ask(judge: Judge) -> AskChoice:
    def ask(question: str, options: str, answer: str) -> str | None:
        key = "choice_cn" if has_chinese(question) else "choice_en"
        fields = {"question": question, "options": options, "prediction": answer}
        return judge.ask(key, fields, temperature=0.0, max_tokens=MAX_TOKENS)

    return ask


def read_all(given: ScoreInput, dataset: str) -> dict[str, ChoiceReading]:
    """Readings by question id."""
    official = given.rules == "official"
    later = given.rules == "later"
    ask = _ask(given.judge) if given.judge is not None else None
    groups: dict[str, list[ChoiceItem]] = defaultdict(list)
    for one in given.questions:
        items = _variants(one, given.answers[one.id], dataset, official)
        groups[_group(one, dataset)].extend(items)
    readings: dict[str, ChoiceReading] = {}
    for items in groups.values():
        if is_circular(dataset):
            found = read_circle(items, later=later, ask=ask, guess=not official)
        else:
            found = [read_choice(one, later=later, ask=ask, guess=not official) for one in items]
        for item, reading in zip(items, found, strict=True):
            if item.id not in readings or reading.hit:
                readings[item.id] = reading
    return readings


def _variants(question: Question, answer: str, dataset: str, official: bool) -> list[ChoiceItem]:
    """The item; under ``official`` an open question's list of answers, one by one."""
    item = item_of(question, answer, mmmu=is_mmmu(dataset), official=official)
    if not item.is_open:
        return [item]
    return [
        ChoiceItem(item.id, item.question, {"A": text, "B": OTHER_ANSWERS}, "A", answer, True)
        for text in texts_of(question.record.get("answer"))
    ]


def _group(question: Question, dataset: str) -> str:
    index = question.record.get("index")
    if is_circular(dataset) and isinstance(index, int):
        return str(index % CIRCLE)
    return question.id


def table_of(questions: Sequence[Question], hits: Mapping[str, float], dataset: str) -> ScoreTable:
    """Means by split and ability; of rotations the first row of a group counts."""
    rows: dict[str, Question] = {}
    for one in questions:
        rows.setdefault(_group(one, dataset), one)
    chosen = list(rows.values())
    return accuracy_table([one.record for one in chosen], [hits[one.id] for one in chosen])


def score_choices(given: ScoreInput, dataset: str) -> Score:
    """Share of right choices."""
    readings = read_all(given, dataset)
    hits = {one.id: readings[one.id].hit for one in given.questions}
    table = table_of(given.questions, hits, dataset)
    unread = sum("no judge" in one.log for one in readings.values())
    drawn = sum("at random" in one.log for one in readings.values())
    notes = (
        *no_judge(unread, "answers that rules cannot read count as wrong (exact matching)"),
        *((f"{drawn} answers that the judge could not read were drawn at random",) * bool(drawn)),
        *lacking(given.questions, "question", "asked without one"),
        *lacking(given.questions, "category", "in Overall alone"),
        *lacking(given.questions, "l2-category", "in Overall alone"),
        *lacking(given.questions, "split", "in no split"),
    )
    return Score(
        metrics=table.values(),
        printed=print_table(table),
        per_sample=hits,
        notes=notes,
        added_columns={
            one.id: {"hit": int(hits[one.id]), "log": readings[one.id].log}
            for one in given.questions
        },
    )


def export_choices(given: ExportInput, dataset: str) -> dict[str, str | bytes]:
    """The table of answers; with a score, that with ``hit`` and ``log``, and the means."""
    stem = file_stem(given, dataset)
    files: dict[str, str | bytes] = {f"{stem}.xlsx": answer_table(given)}
    if given.score is not None:
        table = table_of(given.questions, given.score.per_sample, dataset)
        files[f"{stem}_{judge_suffix(given)}_result.xlsx"] = answer_table(given, scored=True)
        files[f"{stem}_acc.csv"] = csv_table(table)
    return files


def export_for_server(given: ExportInput, dataset: str) -> dict[str, str | bytes]:
    """MMMU_TEST: also a JSON object, id -> letter, or the answer where none is read."""
    stem = file_stem(given, dataset)
    later = given.rules == "later"
    chosen = {}
    for one in given.questions:
        answer = given.answers[one.id]
        letter = can_infer(answer, options_of(one.record), later=later)
        chosen[str(one.record.get("id", one.id))] = letter or answer
    return {f"{stem}.xlsx": answer_table(given), f"{stem}.json": json.dumps(chosen, indent=4)}


def choice_task(dataset: str, *, file: str | None = None, **details: Any) -> TaskSpec:
    """A multiple-choice set."""
    settings = {
        "columns": "A, B, ... (options), answer (letter); category, l2-category, split",
        "metric": "accuracy",
        "judge": "chatgpt-0125",
        **details,
    }
    return tsv_task(
        dataset,
        prompt=choice_prompt,
        score=lambda given: score_choices(given, dataset),
        export=lambda given: export_choices(given, dataset),
        file=file,
        **settings,
    )


def mmmu_test_task(dataset: str, *, file: str | None = None) -> TaskSpec:
    """MMMU's test set, which a server scores."""
    return tsv_task(
        dataset,
        prompt=choice_prompt,
        columns="id, A, B, ... (options)",
        metric="server",
        score=None,
        export=lambda given: export_for_server(given, dataset),
        file=file,
    )


MMSTAR = choice_task(
    "MMStar", published="0.604", source="https://github.com/MMStar-Benchmark/MMStar"
)
MMMU_DEV_VAL = choice_task(
    "MMMU_DEV_VAL",
    title="MMMU dev and validation",
    columns="id, A, B, ... (options), answer, split, category, l2-category; image may be a list",
    published="0.5188888888888888 / 0.52",
    source="https://mmmu-benchmark.github.io",
)
REALWORLDQA = choice_task(
    "RealWorldQA",
    columns="A, B, ... (options), answer (letter)",
    published="0.6775882352941176",
    source="https://huggingface.co/datasets/xai-org/RealworldQA",
)
