"""The frame of the VQA family: one layout, one evaluator, several references and metrics.

A task is one or two :class:`VqaSplit`; reading, asking, answer files and the summary are the same
for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import add_answer
from internvl_chat.evaluation.sources import (
    ImageFile,
    read_json,
    read_jsonl,
    require,
    require_answer,
    require_plain,
)
from internvl_chat.evaluation.task import DataRoot, ExportInput, Question, Rules, Score, ScoreInput

RecordPart = Literal["prompt", "id", "answer", "annotation"]
"""What a field of an answer file holds; ``annotation`` is the ``answer`` of the questions' file."""
References = Mapping[str, Any]
"""Question id -> what scoring compares with, JSON values."""


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """Score of one split."""

    metrics: Mapping[str, float | None]
    """The leading one first."""
    lines: Sequence[str]
    """As printed."""
    per_sample: Mapping[str, float]
    remarks: Sequence[str]
    """See :attr:`Score.notes`."""
    summary: Any
    """What the summary file says of it; None where it says nothing."""


SplitScorer = Callable[[str, Sequence[Question], Mapping[str, str], Rules], SplitScore]
"""(key, questions, answers, rules) -> score; at least one question."""


@dataclass(frozen=True, kw_only=True)
class VqaSplit:
    """One file of questions, under the name that the original gives it."""

    key: str
    questions: str
    """JSON lines with ``image``, ``question``, ``question_id``, ``answer``."""
    images: str
    """Folder, for people: rows name their images from the working directory."""
    suffix: str
    """Follows the question after a space; nothing if empty."""
    fields: Mapping[str, RecordPart]
    """Of a record in the answer file, in order."""
    scorer: SplitScorer | None
    """None where a server scores."""
    annotation: str = ""
    """File of the references, where they are not the rows' own answers."""
    annotation_format: str = ""
    read_annotation: Callable[[Path], References] = field(default=lambda path: {})
    id_prefix: str = ""
    """Removed from ids in the answer file."""
    escapes_answers: bool = True
    """Whether the answer file is ASCII."""
    checkpoint_in_summary: bool = True
    """Whether its summary line begins with the checkpoint; if not, it is printed with the score."""
    submission: Callable[[Sequence[tuple[Any, str]]], Any] | None = None
    """(id, answer) -> what a server or another scorer takes, where that is another file."""
    submission_name: str = ""

    def shown_id(self, question: Question) -> str:
        """As the answer file says it."""
        return str(question.record["question_id"]).replace(self.id_prefix, "")


# ---- questions ------------------------------------------------------------------------------


def load(splits: Sequence[VqaSplit], root: DataRoot, rules: Rules) -> list[Question]:
    """Questions of all splits in the files' order, each with what it is compared with."""
    return [
        question
        for split in splits
        for question in _load_split(split, root.folder, f"{split.key}/" * (len(splits) > 1))
    ]


def _load_split(split: VqaSplit, folder: Path, prefix: str) -> list[Question]:
    references: References = {}
    if split.annotation:
        references = split.read_annotation(folder / split.annotation)
    questions: dict[str, Question] = {}
    for number, (row, where) in enumerate(read_jsonl(folder / split.questions)):
        names = [name for name in ("question_id", "index", "id") if row.get(name) is not None]
        identity = require_plain(row, names[0], where) if names else number
        if f"{prefix}{identity}" in questions:
            raise DatasetError(
                f"question_id {identity!r} was there before",
                where=where,
                fix="Give every question its own.",
            )
        questions[f"{prefix}{identity}"] = Question(
            id=f"{prefix}{identity}",
            prompt=_prompt(_text(row, "question", where), split.suffix),
            images=(ImageFile(str(folder / _text(row, "image", where))),),
            record={
                "key": split.key,
                "question_id": identity,
                "annotation": row.get("answer"),
                "reference": references.get(str(identity)),
            },
        )
    return [*questions.values()]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = require(dict(row), name, where)
    if not isinstance(value, str):
        raise DatasetError(f'"{name}" is {value!r}, want a text', where=where)
    return value


def _prompt(question: str, suffix: str) -> str:
    """LLaVA's own TextVQA file has the instruction already; then it is not said twice."""
    if not suffix or question.rstrip().endswith(suffix):
        return question
    return f"{question} {suffix}"


# ---- scores ---------------------------------------------------------------------------------


def score(splits: Sequence[VqaSplit], given: ScoreInput) -> Score:
    """Each split's score; of two, also the mean of their leading metrics in percent."""
    several = len(splits) > 1
    metrics: dict[str, float | None] = {}
    per_sample: dict[str, float] = {}
    lines: list[str] = []
    notes: list[str] = []
    parts = _score_splits(splits, given.questions, given.answers, given.rules)
    for split, part in parts:
        prefix = f"{split.key}/" if several else ""
        metrics |= {f"{prefix}{name}": value for name, value in part.metrics.items()}
        per_sample |= part.per_sample
        lines += [f"Evaluating {split.key} ...", *part.lines]
        notes += [f"{split.key}: {remark}" for remark in part.remarks]
    lines += [
        str([split.key, part.summary]) for split, part in parts if not split.checkpoint_in_summary
    ]
    if several and len(parts) == len(splits):
        average, line = _average([part for _, part in parts])
        metrics["average"] = average
        lines.append(line)
    printed = "\n".join(lines) + "\n" if lines else ""
    return Score(metrics=metrics, printed=printed, per_sample=per_sample, notes=tuple(notes))


def _score_splits(
    splits: Sequence[VqaSplit],
    questions: Sequence[Question],
    answers: Mapping[str, str],
    rules: Rules,
) -> list[tuple[VqaSplit, SplitScore]]:
    parts = []
    for split in splits:
        asked = _of_split(split, questions)
        if asked and split.scorer is not None:
            parts.append((split, split.scorer(split.key, asked, answers, rules)))
    return parts


def _average(parts: Sequence[SplitScore]) -> tuple[float, str]:
    """The guide's closing line, which the original leaves to the reader."""
    percents = [100 * (next(iter(part.metrics.values())) or 0.0) for part in parts]
    average = sum(percents) / len(percents)
    terms = " + ".join(f"{value:.2f}" for value in percents)
    return average, f"average score = ({terms}) / {len(percents)} = {average:.1f}"


def _of_split(split: VqaSplit, questions: Sequence[Question]) -> list[Question]:
    return [one for one in questions if one.record["key"] == split.key]


# ---- files ----------------------------------------------------------------------------------


def export(splits: Sequence[VqaSplit], given: ExportInput) -> dict[str, str]:
    """``{key}_{stamp}.json``, a submission where it is another file, and the summary's lines."""
    files = {}
    for split in splits:
        asked = _of_split(split, given.questions)
        records = [_record(split, one, given.answers[one.id]) for one in asked]
        name = f"{split.key}_{given.stamp}.json"
        files[name] = json.dumps(records, ensure_ascii=split.escapes_answers)
        if split.submission is not None:
            pairs = [(one.record["question_id"], given.answers[one.id]) for one in asked]
            name = split.submission_name.format(stamp=given.stamp)
            files[name] = json.dumps(split.submission(pairs))
    if given.score is not None and (summary := _summary(splits, given)):
        files["_".join(Path(given.checkpoint).parts[-2:]) + ".txt"] = summary
    return files


def _record(split: VqaSplit, question: Question, answer: str) -> dict[str, Any]:
    identity = question.record["question_id"]
    parts: dict[RecordPart, Any] = {
        "prompt": question.prompt,
        "id": split.shown_id(question) if split.id_prefix else identity,
        "answer": answer,
        "annotation": question.record["annotation"],
    }
    return {name: parts[part] for name, part in split.fields.items()}


def _summary(splits: Sequence[VqaSplit], given: ExportInput) -> str:
    lines = []
    for split, part in _score_splits(splits, given.questions, given.answers, given.rules):
        if part.summary is not None:
            entry = [split.key, part.summary]
            if split.checkpoint_in_summary:
                entry.insert(0, given.checkpoint)
            lines.append(f"{entry}\n")
    return "".join(lines)


def read_answers(
    splits: Sequence[VqaSplit], files: Sequence[Path], questions: Sequence[Question]
) -> dict[str, str]:
    """Answers of such files: by id where records have one, else by position."""
    answers: dict[str, str] = {}
    for path in files:
        records = _records(path)
        split = _split_of(path, records, splits, questions)
        asked = _of_split(split, questions)
        names = [name for name, part in split.fields.items() if part == "id"]
        find = _by_id(names[0], split, asked) if names else _by_position(path, split, asked)
        if not names and len(records) != len(asked):
            raise DatasetError(
                f"has {len(records)} records, {split.key} has {len(asked)} questions",
                where=str(path),
                fix="Records without an id are joined by position: give all of them.",
            )
        for number, record in enumerate(records):
            where = f"{path}, record {number}"
            add_answer(answers, find(number, record, where).id, _answer(record, where), where)
    return answers


def _records(path: Path) -> list[dict[str, Any]]:
    records = read_json(path)
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise DatasetError(
            "is no list of objects", where=str(path), fix="Take the evaluator's {key}_{stamp}.json."
        )
    return records


def _split_of(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    splits: Sequence[VqaSplit],
    questions: Sequence[Question],
) -> VqaSplit:
    """The file's name says it, else its first question."""
    named = [split for split in splits if path.name.startswith(split.key)]
    if not named and records:
        first = records[0].get("question")
        for split in splits:
            if any(one.prompt == first for one in _of_split(split, questions)[:1]):
                named.append(split)
    if len(splits) > 1 and len(named) != 1:
        keys = ", ".join(split.key for split in splits)
        raise DatasetError(
            f"may be of any of {keys}",
            where=str(path),
            fix="Name the file {key}_{stamp}.json, as the evaluator does.",
        )
    return named[0] if named else splits[0]


Finder = Callable[[int, Mapping[str, Any], str], Question]
"""(position, record, where) -> the question that the record answers."""


def _by_id(name: str, split: VqaSplit, asked: Sequence[Question]) -> Finder:
    known = {split.shown_id(one): one for one in asked}

    def find(number: int, record: Mapping[str, Any], where: str) -> Question:
        given = require(dict(record), name, where)
        identity = str(given).replace(split.id_prefix, "")
        if identity not in known:
            raise DatasetError(
                f"{name} {given!r} is none of {split.key}",
                where=where,
                fix=f"Take answers to {split.questions}.",
            )
        return known[identity]

    return find


def _by_position(path: Path, split: VqaSplit, asked: Sequence[Question]) -> Finder:
    def find(number: int, record: Mapping[str, Any], where: str) -> Question:
        question = asked[number]
        if record.get("question", question.prompt) != question.prompt:
            raise DatasetError(
                f"answers {record['question']!r}, question {number} of {split.key} is "
                f"{question.prompt!r}",
                where=where,
                fix=f"Take answers to {split.questions}, in its order.",
            )
        return question

    return find


def _answer(record: Mapping[str, Any], where: str) -> str:
    name = "prediction" if "prediction" in record and "answer" not in record else "answer"
    return require_answer(record, name, where)
