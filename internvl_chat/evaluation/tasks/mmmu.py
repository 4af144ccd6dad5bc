"""MMMU: college-level questions of 30 subjects (https://arxiv.org/abs/2311.16502)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import add_answer
from internvl_chat.evaluation.metrics.letters import lettered, listed, read_letter
from internvl_chat.evaluation.metrics.mmmu import (
    SUBJECTS,
    choice_by_toolbox,
    short_answer_is_right,
    subject_of,
    table_of,
)
from internvl_chat.evaluation.sources import read_json, read_jsonl, require, require_answer
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    ImageSource,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.mmmu_data import parse_options, parse_reference, read_split
from internvl_chat.evaluation.tasks.wording import LETTER_EN, SHORT

FOLDER = "data/MMMU"
ANSWER_KEY = "eval/mmmu/answer_dict_val.json"
"""References of the validation split, which the original brings along; without the file they are
the split's own."""
SUFFIXES = {
    "multiple-choice": LETTER_EN,
    "open": SHORT,
}


def load(root: DataRoot, rules: Rules, *, split: str) -> list[Question]:
    """The questions of a split, subject by subject; subjects that are not there are passed over."""
    folder = root.folder / FOLDER
    references = _answer_key(root.folder / ANSWER_KEY) if split == "validation" else {}
    questions = [
        _question(record, images, where, references)
        for record, images, where in read_split(folder, SUBJECTS, split)
    ]
    if not questions:
        raise DatasetError(
            f"has no file of the {split} split",
            where=str(folder),
            fix=f"Put {split}-*.parquet of the dataset MMMU/MMMU into a folder for each subject.",
        )
    return questions


def _answer_key(path: Path) -> dict[str, Any]:
    """``{"validation_Art_1": {"question_type": ..., "ground_truth": text or list of texts}}``"""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
        raise DatasetError("is no JSON object of objects", where=str(path))
    return {
        identity: require(one, "ground_truth", f"{path}, {identity}")
        for identity, one in content.items()
    }


def _question(
    record: dict[str, Any],
    images: tuple[ImageSource, ...],
    where: str,
    references: Mapping[str, Any],
) -> Question:
    kind = require(record, "question_type", where)
    if kind not in SUFFIXES:
        raise DatasetError(
            f"question_type is {kind!r}", where=where, fix=f"Want {' or '.join(SUFFIXES)}."
        )
    try:
        options = lettered(parse_options(record, where))
    except ValueError as err:
        raise DatasetError(str(err), where=where, fix="Leave out some of the options.") from err
    text = str(require(record, "question", where)).strip()
    identity, answer = str(require(record, "id", where)), record.get("answer")
    return Question(
        id=identity,
        prompt="\n".join([text, *listed(options), SUFFIXES[kind]]).strip(),
        images=images,
        record={
            "options": options,
            "question_type": kind,
            "answer": answer,
            "reference": references.get(identity, answer),
        },
    )


def score(given: ScoreInput, *, is_printed: bool) -> Score:
    """Letters compared as they are read, short answers by their numbers and phrases."""
    verdicts: dict[str, list[bool]] = {}
    per_sample = {}
    for one in given.questions:
        is_right = _is_right(one, given.answers[one.id], given.rules)
        verdicts.setdefault(subject_of(one.id), []).append(is_right)
        per_sample[one.id] = float(is_right)
    table = table_of(verdicts)
    metrics: dict[str, float | None] = {}
    for name, row in table.items():
        metrics |= {name: row["acc"] if row["num"] else None, f"{name}/num": row["num"]}
    unknown = sorted(set(verdicts) - set(SUBJECTS))
    empty = sum(
        not given.answers[one.id].strip() for one in given.questions if one.record["options"]
    )
    notes = []
    if empty:
        notes.append(f"{empty} empty answers to choices, at which the original stops: wrong.")
    if unknown:
        notes.append(f"Not counted, for their ids name no subject of MMMU: {', '.join(unknown)}.")
    if not is_printed:
        notes.append("The original scores the validation split alone.")
    lines = ["Evaluating MMMU_validation ...", "Evaluating ..."]
    for subject in SUBJECTS:
        lines.append(f"Evaluating: {subject}")
        if subject not in verdicts:
            lines.append(f"Skipping {subject} for not found")
    printed = "\n".join([*lines, str(table)]) + "\n" if is_printed else ""
    return Score(metrics=metrics, printed=printed, per_sample=per_sample, notes=tuple(notes))


def _is_right(question: Question, answer: str, rules: Rules) -> bool:
    record = question.record
    gold = record["reference"]
    if record["question_type"] == "open":
        return short_answer_is_right(parse_reference(gold), _stored(question, answer))
    if rules == "official":
        return choice_by_toolbox(answer, record["options"]) == gold
    return _stored(question, answer) == gold


def _stored(question: Question, answer: str) -> str:
    """What the original writes, and scores: a letter where there are options."""
    options = question.record["options"]
    return read_letter(answer, options) if options else answer


def export(given: ExportInput, *, key: str) -> Mapping[str, str]:
    """``{key}_{stamp}.json`` as the server wants it, and ``.jsonl`` with the questions."""
    stored = {one.id: _stored(one, given.answers[one.id]) for one in given.questions}
    lines = [
        json.dumps(
            {
                "question": one.prompt,
                "answer": stored[one.id],
                "gt_answers": one.record["answer"],
                "data_id": one.id,
            }
        )
        for one in given.questions
    ]
    return {
        f"{key}_{given.stamp}.json": json.dumps(stored, indent=4),
        f"{key}_{given.stamp}.jsonl": "".join(f"{line}\n" for line in lines),
    }


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of either file."""
    answers: dict[str, str] = {}
    for path in files:
        if path.suffix == ".jsonl":
            for record, where in read_jsonl(path):
                identity = str(require(record, "data_id", where))
                add_answer(answers, identity, _text(record, "answer", where), where)
            continue
        content = read_json(path)
        if not isinstance(content, dict):
            raise DatasetError("is no JSON object", where=str(path), fix="Want {id: answer}.")
        answers |= {identity: _text(content, identity, str(path)) for identity in content}
    return answers


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    """An answer; the server's null is an empty one."""
    return "" if record.get(name, "") is None else require_answer(record, name, where)


TOOLBOX = (
    "choices are read by the benchmark's own parser: `(B)`, a `B` between spaces, an option's text "
    "in an answer of more than five words; where it draws one by chance the answer is wrong"
)
"""What the official rules change, for the docs."""


def _task(name: str, split: str, published: str) -> TaskSpec:
    key = f"MMMU_{split}"
    rules: tuple[Rules, ...] = ("2024",) if split == "test" else ("2024", "official")
    return TaskSpec(
        id=f"mmmu-{name}",
        suite="internvl",
        title=f"MMMU {split}",
        data=(
            DataFile(
                path=FOLDER,
                format=(
                    "the Hugging Face dataset MMMU/MMMU, a folder for each subject: "
                    f"Accounting/{split}-*.parquet (or the arrow files of the datasets library's "
                    f"cache), or Accounting/{split}.jsonl with image_1 to image_7 naming files of "
                    "that folder; id, question, options (a Python list in text), answer, "
                    "question_type"
                ),
                is_folder=True,
            ),
        ),
        load=partial(load, split=split),
        generation=Generation(max_new_tokens=10),
        metric="MMMU accuracy, by the server" if split == "test" else "MMMU accuracy",
        score=None if split == "test" else partial(score, is_printed=split == "validation"),
        rules=rules,
        rule_differences={"official": TOOLBOX} if "official" in rules else {},
        export=partial(export, key=key),
        read_answers=read_answers,
        tiling="enlarge_first",
        published=published,
        source="https://github.com/MMMU-Benchmark/MMMU",
    )


MMMU = (
    _task("dev", "dev", ""),
    _task("val", "validation", "0.5"),
    _task("test", "test", "0.456"),
)
