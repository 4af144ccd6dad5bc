"""Answers -> numbers under every set of rules, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.answers import read_answer_files
from internvl_chat.evaluation.judging import NOBODY, OpenedJudge
from internvl_chat.evaluation.task import (
    RULES,
    DataRoot,
    Judge,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """A task's answers scored."""

    task: str
    n: int
    """Questions."""
    scores: Mapping[Rules, Score]
    """Sets that mean the same share one."""
    judge: str | None
    """None: nobody was asked."""
    why_no_judge: str = ""
    """Why not, although somebody was to be asked."""

    @property
    def disagree(self) -> list[str]:
        """Questions that are worth something else under other rules, in the data's order."""
        tables = list({id(one): one.per_sample for one in self.scores.values()}.values())
        ids = {name: None for table in tables for name in table}
        return [name for name in ids if len({table.get(name) for table in tables}) > 1]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing or doubtful, each once."""
        found = [note for score in self.scores.values() for note in score.notes]
        return tuple(dict.fromkeys([*([self.why_no_judge] if self.why_no_judge else []), *found]))

    def as_dict(self) -> dict[str, Any]:
        """For programs; numbers that JSON does not know are null."""
        return {
            "task": self.task,
            "n": self.n,
            "rules": {
                rules: {
                    "metrics": {name: _finite(value) for name, value in score.metrics.items()},
                    "printed": score.printed,
                    "per_sample": {name: _finite(v) for name, v in score.per_sample.items()},
                }
                for rules, score in self.scores.items()
            },
            "disagree": self.disagree,
            "judge": self.judge,
            "notes": list(self.notes),
        }


def load_questions(
    task: TaskSpec, root: DataRoot, rules: Rules, limit: int | None = None
) -> list[Question]:
    """A task's questions.

    Raises:
        ConfigError: data is missing or malformed, there is none, or an id stands twice.
    """
    try:
        questions = task.load(root, rules)
    except DatasetError as err:
        raise ConfigError(err.problem, where=err.where, fix=err.fix) from err
    files = root.of(task.suite) / task.data[0].path if task.data else task.id
    if not questions:
        raise ConfigError(
            "the data holds no question", where=str(files), fix="docs/eval_data.md says its format."
        )
    seen: set[str] = set()
    for one in questions:
        if one.id in seen:
            raise ConfigError(
                f"two questions of {task.id} have the id {one.id!r}",
                where=str(files),
                fix="Give every question its own.",
            )
        seen.add(one.id)
    return questions[:limit]


def require_data(tasks: Sequence[TaskSpec], root: DataRoot, *, with_folders: bool) -> None:
    """See that what the tasks need is there.

    Args:
        tasks: to be asked or scored.
        root: where data lies.
        with_folders: images and videos too, which scoring does not read.

    Raises:
        ConfigError: names all that is missing, its place and its format.
    """
    missing = {}
    for task in tasks:
        for one in task.data:
            place = root.of(task.suite)
            path = place / one.path
            wanted = with_folders or not one.is_folder
            if wanted and not one.is_in(place):
                kind = "folder" if one.is_folder else "file"
                missing[path] = f"  {path} ({kind} of {task.id}): {one.format}"
    if missing:
        lines = "\n".join(missing.values())
        raise ConfigError(
            f"data is missing:\n{lines}\n", fix="docs/eval_data.md says where to get it."
        )


def score_answers(
    task: TaskSpec,
    root: DataRoot,
    answers: Mapping[str, str],
    *,
    wanted: Sequence[Rules] = RULES,
    ids: frozenset[str] | None = None,
    judge: OpenedJudge = NOBODY,
) -> ScoreReport:
    """Score under each of the rules wanted.

    Args:
        task: whose data and scorer.
        root: where its data lies.
        answers: by question id; those without one count as answered with nothing.
        wanted: sets of rules; such as mean the same as another are scored once.
        ids: of the questions that count; all if None.
        judge: where the metric has one.
    """
    done: dict[Rules, Score] = {}
    scores: dict[Rules, Score] = {}
    count = 0
    for rules in wanted:
        own = rules if rules in task.rules else task.rules[0]
        if own not in done:
            questions = load_questions(task, root, own)
            questions = [one for one in questions if ids is None or one.id in ids]
            count = len(questions)
            done[own] = _score(task, questions, answers, own, judge.model)
        scores[rules] = done[own]
    name = judge.model.name if judge.model is not None and task.judge is not None else None
    return ScoreReport(task=task.id, n=count, scores=scores, judge=name, why_no_judge=judge.absence)


def _score(
    task: TaskSpec,
    questions: Sequence[Question],
    answers: Mapping[str, str],
    rules: Rules,
    judge: Judge | None,
) -> Score:
    if task.score is None:
        note = f"{task.title} is scored by its server: submit the file"
        return Score(metrics={}, printed="", per_sample={}, notes=(note,))
    asked = {one.id: "" for one in questions}
    complete = {name: text for name, text in answers.items() if name in asked}
    unanswered = frozenset(asked).difference(complete)
    complete |= {name: "" for name in asked if name in unanswered}
    given = ScoreInput(
        questions=questions, answers=complete, rules=rules, judge=judge, unanswered=unanswered
    )
    return task.score(given)


def as_text(report: ScoreReport, first: Rules) -> str:
    """For people: what the original prints, then the rules side by side where they are several.

    Args:
        report: the scores.
        first: the rules whose text is printed.
    """
    score = report.scores[first]
    parts = [score.printed.rstrip("\n")] if score.printed else []
    is_alike = len({id(one) for one in report.scores.values()}) == 1
    if score.metrics and not (is_alike and score.printed):  # else it would be said twice
        parts.append(_table(report))
    if report.disagree:
        shown = ", ".join(report.disagree[:20])
        more = f" and {len(report.disagree) - 20} more" if len(report.disagree) > 20 else ""
        parts.append(f"{len(report.disagree)} samples differ between the rules: {shown}{more}")
    parts += [f"note: {note}" for note in report.notes]
    return "\n".join(parts)


def _table(report: ScoreReport) -> str:
    """A line a metric, a column a distinct set of rules."""
    columns: dict[int, tuple[list[str], Score]] = {}
    for rules, score in report.scores.items():
        columns.setdefault(id(score), ([], score))[0].append(rules)
    names = list(dict.fromkeys(n for _, score in columns.values() for n in score.metrics))
    rows = [["metric", *(", ".join(rules) for rules, _ in columns.values())]]
    for name in names:
        values = [score.metrics.get(name) for _, score in columns.values()]
        rows.append([name, *("-" if v is None else f"{v:.6g}" for v in values)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def score_files(
    task: TaskSpec,
    root: DataRoot,
    files: Sequence[Path],
    *,
    rules: Rules | None = None,
    judge: OpenedJudge = NOBODY,
) -> tuple[ScoreReport, list[str]]:
    """Score answer files of any kind.

    Answers that are missing count as empty ones; in the TSV family, as there, the questions without
    an answer do not count.

    Args:
        task: that they answer.
        root: where its data lies.
        files: see :func:`read_answer_files`.
        rules: only these; all if None.
        judge: where the metric has one.

    Returns:
        The scores, and the ids of questions without an answer.

    Raises:
        ConfigError: data is missing, or a file does not fit.
    """
    require_data([task], root, with_folders=False)
    own = rules if rules in task.rules else task.rules[0]
    found = read_answer_files(task, files, load_questions(task, root, own))
    report = score_answers(
        task,
        root,
        found.answers,
        wanted=RULES if rules is None else (rules,),
        ids=frozenset(found.answers) if task.suite == "vlmevalkit" else None,
        judge=judge,
    )
    return report, found.missing
