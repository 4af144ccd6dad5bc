"""What the TSV benchmarks share: reading, generation, prompts, files, judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeVar

from internvl_chat.evaluation.judge import JudgeRequest, ask_until
from internvl_chat.evaluation.metrics.multiple_choice import LETTERS
from internvl_chat.evaluation.metrics.tables import ScoreTable, csv_table, json_table
from internvl_chat.evaluation.spreadsheets import (
    read_predictions,
    split_judgement,
    write_json_table,
    write_tsv,
    write_xlsx,
)
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    Judge,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.wording import LETTER_CN, LETTER_EN, SHORT
from internvl_chat.evaluation.tsv import load_questions, text_of

SOURCE = "https://github.com/open-compass/VLMEvalKit"
COLUMNS = "index, question, image (base64, or another row's index)"
DIRECT_EN = "Answer the question directly."
DIRECT_CN = "请直接回答问题。"
GENERATION = Generation(max_new_tokens=1024, min_new_tokens=None, extra={"top_p": None})
GENERATION_BY_RULES: Mapping[Rules, Generation] = {
    "later": Generation(max_new_tokens=4096, min_new_tokens=None, extra={"top_p": None})
}
RULE_SETS: tuple[Rules, ...] = ("2024", "later", "official")
FAMILY_DIFFERENCES: Mapping[Rules, str] = {
    "later": "up to 4,096 new tokens; an image is made a JPEG only where `image_path` names one",
    "official": "a cell is the text that it is (`None`, `NA`, `3`); no image is made a JPEG",
}
"""Of all sets of the family, for the docs."""
JUDGE_SUFFIXES = {"chatgpt-0125": "openai", "gpt-4-0125": "gpt4"}
JUDGES_LATER: Mapping[Rules, str] = {"later": "gpt-4o-mini"}
"""Of multiple choice, yes or no, and MathVista."""
JUDGE_TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Of each try, where a reply cannot be read."""
MAX_TOKENS = 1024
"""Of a judge's reply, unless a benchmark says otherwise."""

_WRITERS = {"xlsx": write_xlsx, "tsv": write_tsv, "json": write_json_table}

Parsed = TypeVar("Parsed")
Prompt = Callable[[Mapping[str, Any]], str]
Scorer = Callable[[ScoreInput], Score]
Exporter = Callable[[ExportInput], Mapping[str, str | bytes]]


# -- prompts -------------------------------------------------------------------------------------


def question_of(row: Mapping[str, Any]) -> str:
    """The question's text, empty where it is missing (the original stops there)."""
    return "" if row.get("question") is None else text_of(row["question"])


def has_chinese(text: str) -> bool:
    """Whether a character of U+4E00-U+9FFF is in it."""
    return any("\u4e00" <= char <= "\u9fff" for char in text)


def choice_prompt(row: Mapping[str, Any]) -> str:
    """Hint, question, options, and how to answer, in Chinese if any of them is."""
    text = question_of(row)
    if row.get("hint") is not None:
        text = f"{text_of(row['hint'])}\n{text}"
    options = [
        f"\n{letter}. {text_of(row[letter])}" for letter in LETTERS if row.get(letter) is not None
    ]
    text += "".join(options)
    if options:
        return f"{text}\n{LETTER_CN if has_chinese(text) else LETTER_EN}"
    return f"{text}\n{DIRECT_CN if has_chinese(text) else DIRECT_EN}"


def yes_no_prompt(row: Mapping[str, Any]) -> str:
    """The question and both instructions, the first unless the question has it itself."""
    text = question_of(row)
    first = "" if "yes or no" in text.lower() else " Please answer yes or no."
    return f"{text}{first} {SHORT}"


def short_prompt(row: Mapping[str, Any]) -> str:
    """The question, and that a word or phrase will do."""
    return f"{question_of(row)}\n{SHORT}"


# -- scoring -------------------------------------------------------------------------------------


def plain_answers(given: ScoreInput) -> dict[str, str]:
    """The answers alone, in the data's order."""
    return {one.id: split_judgement(given.answers[one.id])[0] for one in given.questions}


def judgements(given: ScoreInput) -> dict[str, dict[str, Any]]:
    """What a judge said earlier, where the answers come from a table that holds it."""
    found = {one.id: split_judgement(given.answers[one.id])[1] for one in given.questions}
    return {name: judged for name, judged in found.items() if judged}


def ask_by_id(
    judge: Judge | None,
    requests: Mapping[str, JudgeRequest],
    read: Callable[[str], Parsed | None],
    temperatures: Sequence[float],
) -> dict[str, Parsed]:
    """What is read of a judge's replies, by question id; nothing without a judge."""
    if judge is None or not requests:
        return {}
    found = ask_until(judge, list(requests.values()), read, temperatures=temperatures)
    pairs = zip(requests, found, strict=True)
    return {name: value for name, value in pairs if value is not None}


def request(key: str, fields: Mapping[str, str], *, max_tokens: int = MAX_TOKENS) -> JudgeRequest:
    """A question to a judge; the temperature is that of each try."""
    return JudgeRequest(key=key, fields=fields, temperature=0.0, max_tokens=max_tokens)


def no_judge(count: int, what: str) -> tuple[str, ...]:
    """The note on answers that only a judge could read."""
    return (f"no judge: {count} {what}",) if count else ()


def lacking(questions: Sequence[Question], column: str, effect: str) -> tuple[str, ...]:
    """The note on rows without a value in a column that the data has.

    The original stops there.
    """
    count = sum(column in one.record and one.record[column] is None for one in questions)
    return (f"{count} rows have no {column}: {effect}",) if count else ()


# -- files ---------------------------------------------------------------------------------------


def file_stem(given: ExportInput, dataset: str) -> str:
    """``{model}_{dataset}``; the model is the last part of the checkpoint's path."""
    return f"{PurePath(given.checkpoint).name}_{dataset}"


def judge_suffix(given: ExportInput) -> str:
    """What stands for the judge in names of files."""
    if given.judge_name is None:
        return "exact_matching"
    return JUDGE_SUFFIXES.get(given.judge_name, given.judge_name)


def answer_table(given: ExportInput, *, scored: bool = False) -> bytes:
    """The TSV's columns but the image, and ``prediction``; with what scoring added, if asked."""
    rows: list[dict[str, Any]] = []
    for one in given.questions:
        row = {**one.record, "prediction": split_judgement(given.answers[one.id])[0]}
        if scored and given.score is not None:
            row |= given.score.added_columns.get(one.id, {})
        rows.append(row)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return _WRITERS[given.table_format](columns, rows)


def score_file(given: ExportInput, table: ScoreTable) -> str:
    """A table of scores in the format that is wanted."""
    return json_table(table) if given.score_format == "json" else csv_table(table)


# -- tasks ---------------------------------------------------------------------------------------


def load_with(prompt: Prompt, file: str) -> Callable[[DataRoot, Rules], list[Question]]:
    """The loader of a TSV with a prompt for its rows."""

    def load(root: DataRoot, rules: Rules) -> list[Question]:
        return load_questions(root.lmu_data, file, rules, prompt)

    return load


def tsv_task(
    dataset: str,
    *,
    prompt: Prompt,
    columns: str,
    metric: str,
    score: Scorer | None,
    export: Exporter,
    file: str | None = None,
    title: str | None = None,
    judge: str | None = None,
    judge_by_rules: Mapping[Rules, str] | None = None,
    published: str = "",
    source: str = SOURCE,
    rule_differences: Mapping[Rules, str] | None = None,
    whole_numbers: bool = False,
    judged: tuple[str, ...] = (),
) -> TaskSpec:
    """A benchmark of the family.

    Args:
        dataset: id, and the stem of the file below ``LMUData``.
        columns: that the file has besides those of all.
        file: where it is, if not there.
        rule_differences: besides those of the family.
        whole_numbers, judged: see :func:`read_predictions`.
    """
    path = file or f"{dataset}.tsv"
    own = rule_differences or {}
    return TaskSpec(
        id=dataset,
        suite="vlmevalkit",
        title=title or dataset,
        data=(
            DataFile(
                path=path,
                format=f"TSV: {COLUMNS}, {columns}",
                substitutes=(f"{path.removesuffix('.tsv')}_local.tsv",),
            ),
        ),
        load=load_with(prompt, path),
        generation=GENERATION,
        generation_by_rules=GENERATION_BY_RULES,
        metric=metric,
        score=score,
        rules=RULE_SETS,
        rule_differences={
            rules: "; ".join([text, *([own[rules]] if rules in own else [])])
            for rules, text in FAMILY_DIFFERENCES.items()
        },
        export=export,
        read_answers=partial(_read, whole_numbers=whole_numbers, judged=judged),
        judge=judge,
        judge_by_rules=judge_by_rules or {},
        published=published,
        source=source,
    )


def _read(
    files: Sequence[Path],
    questions: Sequence[Question],
    *,
    whole_numbers: bool,
    judged: tuple[str, ...],
) -> dict[str, str]:
    return read_predictions(files, questions, whole_numbers=whole_numbers, judged=judged)
