"""Answers and scores in the original's formats, under its names."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from internvl_chat.evaluation.answers import read_answer_files
from internvl_chat.evaluation.results import CARD
from internvl_chat.evaluation.scoring import ScoreReport, load_questions
from internvl_chat.evaluation.settings import RunSettings
from internvl_chat.evaluation.task import ExportInput, TaskSpec
from internvl_chat.files import written_aside


def write_export(task: TaskSpec, given: ExportInput, folder: Path) -> None:
    """Write a task's files in the original's formats."""
    for name, content in task.export(given).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content.encode() if isinstance(content, str) else content
        with written_aside(path) as aside:
            aside.write_bytes(raw)


def export_scored(
    task: TaskSpec, settings: RunSettings, files: Sequence[Path], report: ScoreReport
) -> None:
    """Write those files for answers that were scored without being asked.

    Args:
        task: that they answer.
        settings: of the run whose answers they are.
        files: that were scored.
        report: their scores.
    """
    rules = settings.rules_of(task)
    questions = load_questions(task, settings.root, rules)
    answers = read_answer_files(task, files, questions).answers
    place = settings.folder / task.id
    given = ExportInput(
        questions=questions,
        answers={one.id: answers.get(one.id, "") for one in questions},
        checkpoint=settings.checkpoint,
        stamp=_stamp(place / CARD),
        rules=rules,
        score=report.scores[rules],
        judge_name=report.judge,
        table_format=settings.table_format,
        score_format=settings.score_format,
    )
    write_export(task, given, settings.export_folder or place)


def _stamp(card: Path) -> str:
    """Of the run, so that its files are written over; now's if there is no card of it."""
    try:
        return str(json.loads(card.read_text(encoding="utf-8"))["stamp"])
    except (OSError, ValueError, KeyError, TypeError):
        return time.strftime("%y%m%d%H%M%S")
