"""A task's folder of results: answers appended as they come, merged in the data's order at the end.

While a run goes on, every process appends to a part file of its own. A killed run leaves parts
behind, the last line of each perhaps cut short; the next run with the same settings starts new
parts and asks what none of them answers.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.task import Question
from internvl_chat.files import write_json, written_aside

ANSWERS, TIMING, SCORE, CARD = "answers.jsonl", "timing.jsonl", "score.json", "run.json"
_PARTS = "parts"
_LOCK = ".lock"
_ANSWER_KEYS = ("id", "prompt", "answer", "tokens", "error")
_TIMING_KEYS = ("id", "seconds", "batch_size", "rank")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What became of a question."""

    id: str
    prompt: str
    answer: str | None
    """None where it could not be asked."""
    tokens: int
    """Generated, the end of the turn included."""
    error: str
    """Why it could not be asked."""
    seconds: float
    """Of its batch, shared out evenly."""
    batch_size: int
    rank: int

    def as_line(self) -> dict[str, Any]:
        """Of a part file."""
        told: dict[str, Any] = {"id": self.id, "prompt": self.prompt}
        if self.answer is None:
            told["error"] = self.error
        else:
            told |= {"answer": self.answer, "tokens": self.tokens}
        return {
            **told,
            "seconds": round(self.seconds, 4),
            "batch_size": self.batch_size,
            "rank": self.rank,
        }


def recorded_checkpoint(folder: Path) -> str | None:
    """The checkpoint that a task's folder has answers of; None if it says none."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = card.get("checkpoint") if isinstance(card, dict) else None
    return found if isinstance(found, str) else None


class TaskFolder:
    """The results of one task and checkpoint on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: TextIO | None = None

    def claim(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """Take the folder for a run, or find that it is the same run's.

        Args:
            card: what ``run.json`` is to hold; ``fingerprint`` in it decides.

        Returns:
            The card; ``stamp`` is the first start's, so that files are written over, not again.

        Raises:
            ConfigError: the folder holds another run's answers; says what differs. Or another
                process is writing to it.
        """
        self._take_lock()
        known = self._card()
        if known is None:
            if (self.path / ANSWERS).exists() or (self.path / _PARTS).exists():
                raise ConfigError(
                    f"holds answers, but no {CARD} that says of what",
                    where=str(self.path),
                    fix="Take another --out-dir, or remove the folder.",
                )
            new = dict(card)
        else:
            self._refuse_another(known.get("fingerprint", {}), card["fingerprint"])
            new = dict(card)
            for name in ("stamp", "template", "model"):
                new[name] = known.get(name, card.get(name))
        (self.path / _PARTS).mkdir(parents=True, exist_ok=True)
        write_json(self.path / CARD, new)
        return new

    def _take_lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    "another process is writing to it",
                    where=str(self.path),
                    fix="Wait for it, or take another --out-dir.",
                ) from err
            # Some network file systems have no locks; then nobody is kept away.

    def release(self) -> None:
        """Let other runs in; killing the process does so, too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _card(self) -> dict[str, Any] | None:
        path = self.path / CARD
        if not path.exists():
            return None
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as err:
            raise ConfigError(
                f"is no JSON ({err})", where=str(path), fix="Remove the folder."
            ) from err
        return card if isinstance(card, dict) else {}

    def _refuse_another(self, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        differing = [
            f"{name} is {_short(known.get(name))} there, {_short(wanted.get(name))} here"
            for name in sorted({*known, *wanted})
            if known.get(name) != wanted.get(name)
        ]
        if differing:
            raise ConfigError(
                f"holds answers of another run: {'; '.join(differing)}",
                where=str(self.path),
                fix="Take another --out-dir, or remove the folder.",
            )

    def answered(self) -> dict[str, dict[str, Any]]:
        """Lines of all questions that have an answer, by id, from parts and a finished run."""
        found = {}
        for line in self._lines():
            if "answer" in line:
                found[str(line["id"])] = line
        return found

    def _lines(self) -> Iterator[dict[str, Any]]:
        timings = {line["id"]: line for line in read_lines(self.path / TIMING)}
        for line in read_lines(self.path / ANSWERS):
            yield {**line, **timings.get(line["id"], {})}
        for part in sorted((self.path / _PARTS).glob("*.jsonl")):
            yield from read_lines(part)

    @contextmanager
    def part(self, rank: int) -> Iterator[TextIO]:
        """A new part file of this process, open for writing."""
        number = 0
        while True:
            path = self.path / _PARTS / f"{rank:05d}-{number:03d}.jsonl"
            try:
                file = path.open("x", encoding="utf-8")
                break
            except FileExistsError:
                number += 1
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def merge(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """Write the answers in the data's order and remove the parts.

        Returns:
            A line for each question that was met, answered or not, in the data's order.
        """
        last: dict[str, dict[str, Any]] = {}
        for line in self._lines():
            if "answer" in line or "answer" not in last.get(str(line["id"]), {}):
                last[str(line["id"])] = line
        lines = [last[one.id] for one in questions if one.id in last]
        _write_lines(self.path / TIMING, (_only(line, _TIMING_KEYS) for line in lines))
        _write_lines(self.path / ANSWERS, (_only(line, _ANSWER_KEYS) for line in lines))
        for part in (self.path / _PARTS).glob("*.jsonl"):
            part.unlink()
        (self.path / _PARTS).rmdir()
        return lines


def append(file: TextIO, answered: Iterable[Answered]) -> None:
    """Write lines and hand them to the system, so that killing the process loses none."""
    for one in answered:
        file.write(json.dumps(one.as_line(), ensure_ascii=False) + "\n")
    file.flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of answers or timings; a last one that was cut short is left out.

    Raises:
        ConfigError: another line is no JSON object with an ``id``.
    """
    if not path.exists():
        return []
    raw = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(raw[:-1], start=1):  # what follows the last newline was cut
        try:
            line = json.loads(text)
            lines.append({**line, "id": str(line["id"])})
        except (ValueError, KeyError, TypeError) as err:
            raise ConfigError(
                "is no line of answers",
                where=f"{path}:{number}",
                fix="Remove the line: its question will be asked again.",
            ) from err
    return lines


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _only(line: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: line[key] for key in keys if key in line}


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:10]}…{text[-3:]}"
