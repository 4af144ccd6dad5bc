"""A task's questions, scores and files, for tests of its declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from internvl_chat.evaluation.task import (
    DataRoot,
    ExportInput,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)

CHECKPOINT = "pretrained/InternVL-Chat-V1-2-Plus"
STAMP = "240727004726"


def questions_of(task: TaskSpec, root: Path, rules: Rules = "2024") -> list[Question]:
    """What a task asks of data below a folder."""
    return task.load(DataRoot(folder=root, lmu_data=root / "LMUData"), rules)


def answered(questions: Sequence[Question], texts: Sequence[str]) -> dict[str, str]:
    """Answers by question id."""
    return {one.id: text for one, text in zip(questions, texts, strict=True)}


def score_of(
    task: TaskSpec, questions: Sequence[Question], answers: Mapping[str, str], rules: Rules = "2024"
) -> Score:
    """What a task makes of answers."""
    assert task.score is not None
    return task.score(ScoreInput(questions=questions, answers=answers, rules=rules))


def export_of(
    task: TaskSpec,
    questions: Sequence[Question],
    answers: Mapping[str, str],
    rules: Rules = "2024",
    *,
    with_score: bool = True,
) -> dict[str, str]:
    """The files that a task writes, all of them text."""
    files = task.export(
        ExportInput(
            questions=questions,
            answers=answers,
            checkpoint=CHECKPOINT,
            stamp=STAMP,
            rules=rules,
            score=score_of(task, questions, answers, rules) if with_score else None,
        )
    )
    assert all(isinstance(content, str) for content in files.values())
    return {name: str(content) for name, content in files.items()}


def write_files(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Put texts into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8"))
    return [folder / name for name in files]


def draw(path: Path, number: int = 0) -> Path:
    """A small image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (number * 40 % 256, 90, 200 - number * 15 % 200)
    Image.new("RGB", (12, 8), colour).save(path)
    return path
