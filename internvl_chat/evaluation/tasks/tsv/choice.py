"""Multiple-choice TSV sets: MMStar, MMMU_DEV_VAL, RealWorldQA, and others by path."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from internvl_chat.evaluation.judge import JudgeRequest, ask_all
from internvl_chat.evaluation.metrics.can_infer import NONE_FITS, can_infer
from internvl_chat.evaluation.metrics.multiple_choice import (
    CIRCLE,
    JUDGE_TRIES,
    LETTERS,
    OTHER_ANSWERS,
    ChoiceItem,
    ChoiceReading,
    accuracy_table,
    draw,
    infer,
    is_lost,
    options_of,
    render_options,
)
from internvl_chat.evaluation.metrics.tables import ScoreTable, print_table
from internvl_chat.evaluation.spreadsheets import split_judgement
from internvl_chat.evaluation.task import ExportInput, Question, Score, ScoreInput, TaskSpec
from internvl_chat.evaluation.tasks.tsv.common import (
    JUDGES_LATER,
    answer_table,
    choice_prompt,
    file_stem,
    has_chinese,
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
from internvl_chat.evaluation.tsv import text_of, texts_of

LATER = (
    "a letter counts among the last four words alone, `answer is X` is read, option texts only in "
    "short answers"
)
OFFICIAL = "where the judge is not understood the answer is wrong, not drawn at random"
"""What the rules change, for the docs."""
UNREAD = "not read by rules"
NOT_UNDERSTOOD = "not read by the judge"
DRAWN = "drawn at random"


def is_mmmu(dataset: str) -> bool:
    """Whether open questions are scored as choices between the right answer and others."""
    return "MMMU" in dataset


def is_circular(dataset: str) -> bool:
    """Whether rows are rotations of one question."""
    return any(name in dataset.lower() for name in ("mmbench", "ccbench"))


def whole_columns(questions: Sequence[Question]) -> set[str]:
    """Option columns that hold whole floats and nothing else.

    The original scores what it has written to xlsx, from where they come back as integers.
    """
    cells = {name: [one.record.get(name) for one in questions] for name in LETTERS}
    return {
        name
        for name, column in cells.items()
        if all(isinstance(cell, float) and cell.is_integer() for cell in column)
    }


def item_of(
    question: Question,
    answer: str,
    *,
    mmmu: bool,
    official: bool = False,
    whole: Collection[str] = (),
) -> ChoiceItem:
    """A row with its answer; ``whole``: options to be read as integers.

    MMMU: a row without option A is an open question; A becomes its answer and B any other. The
    original keeps a gold answer that is itself a letter, and takes a list as one text.
    """
    row = question.record
    options = {name: int(cell) if name in whole else cell for name, cell in options_of(row).items()}
    gold = None if row.get("answer") is None else text_of(row["answer"])
    accepted: tuple[str, ...] = ()
    if mmmu:
        if "A" not in options:
            accepted = tuple(texts_of(gold)) if official and not options and gold else ()
            options = {**options, "A": gold, "B": OTHER_ANSWERS}
            options = {letter: options[letter] for letter in sorted(options)}
            if gold is None:
                del options["A"]
        if accepted or gold is None or gold not in [*LETTERS]:
            gold = "A"
    return ChoiceItem(question.id, question_of(row), options, gold, answer, accepted)


def read_all(given: ScoreInput, dataset: str) -> dict[str, ChoiceReading]:
    """Readings by question id: by rules, then by a judge where there is one."""
    later = given.rules == "later"
    answers, judged = plain_answers(given), judgements(given)
    mmmu, official = is_mmmu(dataset), given.rules == "official"
    whole = whole_columns(given.questions)
    items = {
        one.id: item_of(one, answers[one.id], mmmu=mmmu, official=official, whole=whole)
        for one in given.questions
    }
    groups: dict[str, list[str]] = defaultdict(list)
    for one in given.questions:
        groups[_group(one, dataset)].append(one.id)
    readings: dict[str, ChoiceReading] = {}
    waiting: list[ChoiceItem] = []
    for names in groups.values():
        group = [items[name] for name in names]
        letters = [infer(item, later=later) for item in group]
        lost = len(group) > 1 and is_lost(group, letters)
        for item, letter in zip(group, letters, strict=True):
            if letter is not None:
                readings[item.id] = ChoiceReading.of(item, letter, "read by rules")
            elif item.id in judged:
                hit = float(judged[item.id]["hit"] or 0)
                readings[item.id] = ChoiceReading("", hit, str(judged[item.id]["log"]))
            else:
                readings[item.id] = ChoiceReading.of(item, NONE_FITS, UNREAD)
                waiting += [] if lost else [item]
    readings |= _by_judge(given, waiting)
    for names in groups.values():
        hit = min(readings[name].hit for name in names)
        readings |= {name: replace(readings[name], hit=hit) for name in names}
    return readings


def _by_judge(given: ScoreInput, waiting: Sequence[ChoiceItem]) -> dict[str, ChoiceReading]:
    """Of answers that rules cannot read; drawn at random where the judge is not understood."""
    if given.judge is None:
        return {}
    readings: dict[str, ChoiceReading] = {}
    left = list(waiting)
    for number in range(JUDGE_TRIES):
        requests = [replace(_request(item), attempt=number) for item in left]
        replies = ask_all(given.judge, requests)
        for item, reply in zip(left, replies, strict=True):
            if reply and (found := can_infer(reply, item.options, later=given.rules == "later")):
                readings[item.id] = ChoiceReading.of(item, found, f"judge: {reply}")
        left = [item for item in left if item.id not in readings]
    for item in left:
        if given.rules == "official":
            readings[item.id] = ChoiceReading.of(item, NONE_FITS, NOT_UNDERSTOOD)
        else:
            readings[item.id] = ChoiceReading.of(item, draw(item), f"{NOT_UNDERSTOOD}, {DRAWN}")
    return readings


def _request(item: ChoiceItem) -> JudgeRequest:
    fields = {
        "question": item.question,
        "options": render_options(item.options),
        "prediction": item.answer,
    }
    return request("choice_cn" if has_chinese(item.question) else "choice_en", fields)


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
    for one in questions:  # the group is named by its main row, where that is there
        if one.id in rows:
            rows[one.id] = one
    chosen = list(rows.values())
    return accuracy_table([one.record for one in chosen], [hits[one.id] for one in chosen])


def score_choices(given: ScoreInput, dataset: str) -> Score:
    """Share of right choices."""
    readings = read_all(given, dataset)
    hits = {one.id: readings[one.id].hit for one in given.questions}
    table = table_of(given.questions, hits, dataset)
    unread = sum(one.log == UNREAD for one in readings.values()) if given.judge is None else 0
    drawn = sum(DRAWN in one.log for one in readings.values())
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
    files: dict[str, str | bytes] = {f"{stem}.{given.table_format}": answer_table(given)}
    if given.score is not None:
        table = table_of(given.questions, given.score.per_sample, dataset)
        files[f"{stem}_{judge_suffix(given)}_result.{given.table_format}"] = answer_table(
            given, scored=True
        )
        files[f"{stem}_acc.{given.score_format}"] = score_file(given, table)
    return files


def export_for_server(given: ExportInput, dataset: str) -> dict[str, str | bytes]:
    """MMMU_TEST: also a JSON object, id -> letter, or the answer where none is read."""
    stem = file_stem(given, dataset)
    later = given.rules == "later"
    chosen = {}
    for one in given.questions:
        answer = split_judgement(given.answers[one.id])[0]
        letter = can_infer(answer, options_of(one.record), later=later)
        chosen[str(one.record.get("id", one.id))] = letter or answer
    if given.table_format == "json":  # whose place the submission takes
        given = replace(given, table_format="xlsx")
    table = {f"{stem}.{given.table_format}": answer_table(given)}
    return {**table, f"{stem}.json": json.dumps(chosen, indent=4)}


def choice_task(dataset: str, *, file: str | None = None, **details: Any) -> TaskSpec:
    """A multiple-choice set."""
    settings = {
        "columns": "A, B, ... (options), answer (letter); category, l2-category, split",
        "metric": "accuracy",
        "judge": "chatgpt-0125",
        "judge_by_rules": JUDGES_LATER,
        "judged": ("hit", "log"),
        "rule_differences": {"later": LATER, "official": OFFICIAL},
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
        rule_differences={"later": LATER},
    )


MMSTAR = choice_task(
    "MMStar", published="0.604", source="https://github.com/MMStar-Benchmark/MMStar"
)
MMMU_DEV_VAL = choice_task(
    "MMMU_DEV_VAL",
    title="MMMU dev and validation",
    columns="id, A, B, ... (options), answer, split, category, l2-category; image may be a list",
    rule_differences={
        "later": LATER,
        "official": f"{OFFICIAL}; an open answer is right if it holds the right text, of which a "
        "list names several, and is not read as a letter",
    },
    published="0.5188888888888888 / 0.52",
    source="https://mmmu-benchmark.github.io",
)
REALWORLDQA = choice_task(
    "RealWorldQA",
    columns="A, B, ... (options), answer (letter)",
    published="0.6775882352941176",
    source="https://huggingface.co/datasets/xai-org/RealworldQA",
)
