"""Answer files: our own ``answers.jsonl``, or what the original evaluators wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.results import ANSWERS
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
    own = [_own_answers(path) for path in paths]
    if all(one is not None for one in own):
        answers = {name: text for one in own for name, text in (one or {}).items()}
    else:
        try:
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
    answers = {}
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None or not {"id", "prompt"} <= set(record) <= _OURS:
            if number == 1:
                return None
            raise ConfigError("is no line of answers", where=f"{path}:{number}")
        if "answer" in record:
            answers[str(record["id"])] = str(record["answer"])
    return answers if lines else None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # a UnicodeDecodeError is one too
        return None
    return found if isinstance(found, dict) else None
