"""MM-Vet: open questions, graded by a judge (https://arxiv.org/abs/2308.02490)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import require_text
from internvl_chat.evaluation.judge import JudgeRequest, ask_until
from internvl_chat.evaluation.sources import (
    ImageFile,
    read_json,
    read_jsonl,
    require_answer,
    require_plain,
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

QUESTIONS = "data/mm-vet/llava-mm-vet.jsonl"
IMAGES = "data/mm-vet/images"
REFERENCES = "data/mm-vet/mm-vet.json"
"""Of the release; the server has its own, so only a judge here needs it."""
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Of each try to get a number from the judge."""


def load(root: DataRoot, rules: Rules) -> list[Question]:
    """The questions, with their references where the release's file is there."""
    path = root.folder / REFERENCES
    references = read_json(path) if path.exists() else {}
    if not isinstance(references, dict):
        raise DatasetError("is no JSON object", where=str(path), fix='Want {"v1_0": {...}, ...}.')
    questions = []
    for record, where in read_jsonl(root.folder / QUESTIONS):
        identity = require_plain(record, "question_id", where)
        text = require_text(record, "text", where)
        reference = references.get(f"v1_{identity}")
        kept: dict[str, Any] = {"question_id": identity, "question": text}
        if isinstance(reference, dict) and "answer" in reference:
            kept |= {
                "answer": str(reference["answer"]),
                "capability": list(reference.get("capability", ())),
            }
        questions.append(
            Question(
                id=str(identity),
                prompt=f"{text} ",
                images=(
                    ImageFile(str(root.folder / IMAGES / require_text(record, "image", where))),
                ),
                record=kept,
            )
        )
    return questions


def score(given: ScoreInput) -> Score:
    """100 times the judge's mean grade; nothing without a judge or references."""
    if given.judge is None:
        note = "No judge: hand the json file to the MM-Vet server."
    elif any("answer" not in one.record for one in given.questions):
        note = f"The judge needs the references of {REFERENCES}: put the release's file there."
    else:
        return _judged(given.questions, given.answers, given.judge)
    return Score(metrics={"total": None}, printed="", per_sample={}, notes=(note,))


def _judged(questions: Sequence[Question], answers: Mapping[str, str], judge: Judge) -> Score:
    requests = [
        JudgeRequest(
            key="mmvet",
            fields={
                "question": one.record["question"],
                "ground_truth": one.record["answer"],
                "prediction": answers[one.id],
            },
            temperature=TEMPERATURES[0],
            max_tokens=3,
        )
        for one in questions
    ]
    grades = ask_until(judge, requests, read_grade, temperatures=TEMPERATURES)
    if all(grade is None for grade in grades):
        note = f"{judge.name} graded nothing: hand the json file to the MM-Vet server."
        return Score(metrics={"total": None}, printed="", per_sample={}, notes=(note,))
    per_sample = {one.id: grade or 0.0 for one, grade in zip(questions, grades, strict=True)}
    metrics: dict[str, float | None] = {}
    for name in CAPABILITIES:
        metrics[name] = _percent(
            [per_sample[one.id] for one in questions if name in one.record["capability"]]
        )
    total = _percent(list(per_sample.values()))
    metrics["total"] = total
    lost = [one.id for one, grade in zip(questions, grades, strict=True) if grade is None]
    notes = [f"Judged by {judge.name}; the published number is GPT-4-0613's."]
    if lost:
        notes.append(f"{len(lost)} without a grade, counted as 0.0: {', '.join(lost)}.")
    return Score(
        metrics=metrics,
        printed="" if total is None else f"runs: [{total:.1f}]\n",
        per_sample=per_sample,
        notes=tuple(notes),
    )


def read_grade(reply: str) -> float | None:
    """The number from 0 to 1 that a reply begins with; None if it does not."""
    try:
        grade = float(reply.strip().split(" ")[0])
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def _percent(grades: Sequence[float]) -> float | None:
    return 100 * sum(grades) / len(grades) if grades else None


def export(given: ExportInput) -> Mapping[str, str]:
    """``mmvet_{stamp}.json``, the format of the server."""
    answers = {f"v1_{one.record['question_id']}": given.answers[one.id] for one in given.questions}
    return {f"mmvet_{given.stamp}.json": json.dumps(answers)}


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such an object."""
    answers: dict[str, str] = {}
    for path in files:
        content = read_json(path)
        if not isinstance(content, dict):
            raise DatasetError(
                "is no JSON object", where=str(path), fix='Want {"v1_0": "answer", ...}.'
            )
        for name in content:
            answers[name.removeprefix("v1_")] = require_answer(content, name, str(path))
    return answers


MMVET = TaskSpec(
    id="mmvet",
    suite="internvl",
    title="MM-Vet",
    data=(
        DataFile(
            path=QUESTIONS,
            format=(
                "JSON lines: question_id, image, text; the release's mm-vet.json beside it is "
                "needed by a judge alone"
            ),
        ),
        DataFile(path=IMAGES, format="v1_0.png, ...", is_folder=True),
    ),
    load=load,
    generation=Generation(max_new_tokens=1000),
    metric="grades of a judge",
    score=score,
    export=export,
    read_answers=read_answers,
    judge="gpt-4-0613",
    single_process=True,
    published="47.9",
    source="https://github.com/yuweihao/MM-Vet",
)
