"""Answer files: our own ``answers.jsonl``, or what the original evaluators wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.joining import add_answer
from internvl_chat.evaluation.results import ANSWERS
from internvl_chat.evaluation.sources import parse_json, require_answer, require_plain
from internvl_chat.evaluation.task import Question, TaskSpec

_OURS = {"id", "prompt", "answer", "tokens", "error"}


@dataclass(frozen=True, kw_only=True)
class AnswerSet:
    """Answers that were read."""

    answers: dict[str, str]
    """By question id."""
    missing: list[str]
    """Questions without one, in the data's order."""


def read_answer_files(
    task: TaskSpec, files: Sequence[Path], questions: Sequence[Question]
) -> AnswerSet:
    """Read answers of either kind.

    Args:
        task: says how the original's files are read.
        files: of one kind; a folder of our results stands for its ``answers.jsonl``.
        questions: all of the task's.

    Raises:
        ConfigError: a file is missing, is no answer file, or answers other questions.
    """
    for path in files:
        if not path.exists():
            raise ConfigError("no such file", where=str(path), fix="Name the answer file.")
    paths = [path / ANSWERS if (path / ANSWERS).is_file() else path for path in files]
    try:
        own = [_own_answers(path) for path in paths]
        if all(one is not None for one in own):
            answers = {name: text for one in own for name, text in (one or {}).items()}
        else:
            answers = task.read_answers(paths, questions)
    except DatasetError as err:
        raise ConfigError(err.problem, where=err.where, fix=err.fix) from err
    known = {one.id for one in questions}
    strange = [name for name in answers if name not in known]
    named = ", ".join(map(str, files))
    if strange or not answers:
        problem = (
            f"answers question {strange[0]!r}, which {task.id} has not" if strange else "empty"
        )
        raise ConfigError(problem, where=named, fix=f"Give an answer file of {task.id}.")
    missing = [one.id for one in questions if one.id not in answers]
    return AnswerSet(answers=answers, missing=missing)


def _own_answers(path: Path) -> dict[str, str] | None:
    """By id, of a file that the runner wrote; None for another file."""
    if not path.is_file() or path.suffix != ".jsonl":
        return None
    answers: dict[str, str] = {}
    lines = [
        (line, f"{path}:{number}")
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
        if line.strip()
    ]
    for line, where in lines:
        record = _record(line, where)
        if record is None or not {"id", "prompt"} <= set(record) <= _OURS:
            if where == lines[0][1]:
                return None
            raise DatasetError(
                "is no line of answers",
                where=where,
                fix="Mend or remove it.",
            )
        if record.get("answer") is not None:
            identity = str(require_plain(record, "id", where))
            add_answer(answers, identity, require_answer(record, "answer", where), where)
    return answers if lines else None


def _record(line: bytes, where: str) -> dict[str, Any] | None:
    try:
        found = parse_json(line.decode("utf-8-sig"), where)
    except (DatasetError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None
