"""Answer files whose records carry no id: each record goes to the question that it repeats."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.sources import read_json, require, require_answer, require_plain
from internvl_chat.evaluation.task import Question


def identity(record: Mapping[str, Any], number: int, where: str) -> str:
    """The id of a record: its own, else its number from 0.

    Raises:
        DatasetError: its own is neither a text nor a number.
    """
    own = (name for name in ("question_id", "index", "id") if record.get(name) is not None)
    name = next(own, None)
    return str(number if name is None else require_plain(record, name, where))


def require_text(record: Mapping[str, Any], name: str, where: str) -> str:
    """A field that a record must have, and that must be a text.

    Raises:
        DatasetError: it is not.
    """
    value = require(record, name, where)
    if not isinstance(value, str):
        raise DatasetError(f'"{name}" is {value!r}, want a text', where=where)
    return value


class OpenQuestions:
    """Questions that wait for their answer, by what an answer file repeats of them.

    Records of questions that agree in this go to them in the data's order.
    """

    def __init__(self, questions: Sequence[Question], key: Callable[[Question], Hashable]) -> None:
        self._open: dict[Hashable, list[Question]] = {}
        for one in questions:
            self._open.setdefault(key(one), []).append(one)

    def take(self, key: Hashable, where: str, *, text: str | None = None) -> str:
        """The id of the question that a record answers; no other record gets it.

        Args:
            key: what the record repeats.
            where: the record's place.
            text: what the record holds of the question; contains its ``record["text"]``. Where
                several questions have theirs in it, the longest is meant.

        Raises:
            DatasetError: no question is like that, or all that are have their answer.
        """
        waiting = self._open.get(key, [])
        fitting = {
            number: 0 if text is None else len(_text_of(one))
            for number, one in enumerate(waiting)
            if text is None or _text_of(one) in text
        }
        if fitting:  # the first of the longest
            return waiting.pop(max(fitting, key=lambda number: fitting[number])).id
        shown = key if text is None else (key, text)
        raise DatasetError(
            f"fits no question, or one that has its answer: {shown!r}",
            where=where,
            fix="Take the answers to this data.",
        )


def _text_of(question: Question) -> str:
    return str(question.record["text"]).strip()


def answers_by_id(
    records: Iterable[tuple[Mapping[str, Any], str]],
    questions: Sequence[Question],
    *,
    id_field: str,
    answer_field: str,
) -> dict[str, str]:
    """Answers of records that say which question they are about.

    Raises:
        DatasetError: a field is missing, or there is no such question.
    """
    known = {one.id for one in questions}
    answers: dict[str, str] = {}
    for record, where in records:
        one = str(require_plain(record, id_field, where))
        if one not in known:
            raise DatasetError(
                f"{id_field} {one!r} is not in the data",
                where=where,
                fix="Take the answers to this data.",
            )
        add_answer(answers, one, require_answer(record, answer_field, where), where)
    return answers


def add_answer(answers: dict[str, str], identity: str, answer: str, where: str) -> None:
    """Put an answer to those of its file.

    Raises:
        DatasetError: the question has another one already.
    """
    if answers.setdefault(identity, answer) != answer:
        raise DatasetError(
            f"answers question {identity} again, and otherwise", where=where, fix="Keep one."
        )


def read_records(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Objects of a JSON list with their place.

    Raises:
        DatasetError: missing, no JSON, or something else than a list of objects.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DatasetError("is no JSON list", where=str(path))
    records = []
    for number, record in enumerate(content):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise DatasetError("is no JSON object", where=where)
        records.append((record, where))
    return records


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """One object per line."""
    return "".join(json.dumps(record) + "\n" for record in records)
