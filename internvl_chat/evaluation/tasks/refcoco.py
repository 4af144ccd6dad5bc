"""RefCOCO, RefCOCO+ and RefCOCOg: the box that an expression describes
(https://arxiv.org/abs/1608.00272, https://arxiv.org/abs/1511.02283)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import OpenQuestions, identity, read_records, require_text
from internvl_chat.evaluation.metrics.boxes_iou import (
    exact_iou,
    iou,
    read_box,
    read_ordered_box,
)
from internvl_chat.evaluation.sources import (
    ImageFile,
    read_jsonl,
    require,
    require_answer,
    require_list,
)
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)

SPLITS = {
    "refcoco_val": "90.2",
    "refcoco_testA": "93.4",
    "refcoco_testB": "85.5",
    "refcoco+_val": "85.3",
    "refcoco+_testA": "90.4",
    "refcoco+_testB": "79.7",
    "refcocog_val": "88.5",
    "refcocog_test": "88.8",
}
"""In the order of evaluation, with the published percentage (InternVL-Chat-V1-1, 5 beams)."""
PROMPT = (
    "Please provide the bounding box coordinate of the region this sentence describes: "
    "<ref>{sent}</ref>"
)
THRESHOLD = 0.5


def load(root: DataRoot, rules: Rules, *, splits: Sequence[str]) -> list[Question]:
    """Expressions of one or several splits."""
    return [question for split in splits for question in _load(root, split, len(splits) > 1)]


def _load(root: DataRoot, split: str, has_prefix: bool) -> list[Question]:
    questions = []
    for number, (record, where) in enumerate(read_jsonl(root.folder / _path(split))):
        text = require_text(record, "sent", where)
        image = require_text(record, "image", where)
        own = identity(record, number, where)
        questions.append(
            Question(
                id=f"{split}/{own}" if has_prefix else own,
                prompt=PROMPT.replace("{sent}", text),
                images=(ImageFile(str(root.folder / image), shown=image),),
                record={
                    "split": split,
                    "bbox": _box(record, where),
                    "hw": [_size(record, name, where) for name in ("height", "width")],
                },
            )
        )
    return questions


def _path(split: str) -> str:
    return f"data/refcoco/{split}.jsonl"


def _box(record: dict[str, Any], where: str) -> list[float]:
    box = require(record, "bbox", where)
    if isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box):
        return box
    raise DatasetError(f'"bbox" is {box!r}, want [x1, y1, x2, y2]', where=where)


def _numbers(record: dict[str, Any], name: str, where: str) -> list[float]:
    values = require_list(record, name, where)
    if not all(isinstance(one, int | float) for one in values):
        raise DatasetError(f'"{name}" is {values!r:.80}, want numbers', where=where)
    return [float(one) for one in values]


def _size(record: dict[str, Any], name: str, where: str) -> float:
    size = require(record, name, where)
    if isinstance(size, int | float) and size > 0:
        return size
    raise DatasetError(f'"{name}" is {size!r}, want pixels', where=where)


def score(given: ScoreInput) -> Score:
    """Share of boxes that overlap the truth by half."""
    per_sample: dict[str, float] = {}
    hits: dict[str, list[bool]] = {}
    for one in given.questions:
        overlap = _exact_overlap if given.rules == "official" else _overlap
        hit = overlap(one, given.answers[one.id]) >= THRESHOLD
        hits.setdefault(one.record["split"], []).append(hit)
        per_sample[one.id] = float(hit)
    metrics = {split: sum(row) / len(row) for split, row in hits.items()}
    blocks = [
        f"Evaluating {split} ...\nEvaluating {split} ...\n{_precision(value)}\n"
        for split, value in metrics.items()
    ]
    return Score(metrics=metrics, printed="".join(blocks), per_sample=per_sample)


def _overlap(question: Question, answer: str) -> float:
    """In float32, corners as they are given."""
    height, width = question.record["hw"]
    box = read_box(answer, width, height)
    return iou(box, np.array(question.record["bbox"], dtype=np.float32))


def _exact_overlap(question: Question, answer: str) -> float:
    height, width = question.record["hw"]
    return exact_iou(read_ordered_box(answer, width, height), question.record["bbox"])


def _precision(value: float | None) -> str:
    return f"Precision @ 1: {value} \n"


def export(given: ExportInput) -> Mapping[str, str]:
    """``{split}_{stamp}.json`` of each, and the summary ``{parent}_{name}.txt``."""
    records: dict[str, list[dict[str, Any]]] = {}
    for one in given.questions:
        records.setdefault(one.record["split"], []).append(
            {
                "answer": given.answers[one.id],
                "gt_bbox": one.record["bbox"],
                "hw": one.record["hw"],
            }
        )
    files = {f"{split}_{given.stamp}.json": json.dumps(row) for split, row in records.items()}
    if given.score is not None:
        rows = [
            [given.checkpoint, split, _precision(given.score.metrics[split])] for split in records
        ]
        name = "_".join(Path(given.checkpoint).parts[-2:])
        files[f"{name}.txt"] = "".join(f"{row}\n" for row in rows)
    return files


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such lists; a file's name begins with its split, unless there is only one."""
    splits = {one.record["split"]: None for one in questions}
    waiting = OpenQuestions(
        questions,
        lambda one: (one.record["split"], *map(float, (*one.record["bbox"], *one.record["hw"]))),
    )
    answers = {}
    for path in files:
        named = [split for split in splits if path.name.startswith(f"{split}_")]
        if not named and len(splits) > 1:
            raise DatasetError(
                "does not say its split",
                where=str(path),
                fix=f"Call it {next(iter(splits))}_….json.",
            )
        split = named[0] if named else next(iter(splits), "")
        for record, where in read_records(path):
            places = [*_numbers(record, "gt_bbox", where), *_numbers(record, "hw", where)]
            one = waiting.take((split, *places), where)
            answers[one] = require_answer(record, "answer", where)
    return answers


def _spec(id: str, title: str, splits: Sequence[str]) -> TaskSpec:
    loader: Callable[[DataRoot, Rules], list[Question]] = partial(load, splits=tuple(splits))
    return TaskSpec(
        id=id,
        suite="internvl",
        title=title,
        data=tuple(
            DataFile(
                path=_path(split),
                format="JSON lines: image (path), sent, bbox ([x1, y1, x2, y2] in pixels), "
                "width, height",
            )
            for split in splits
        ),
        load=loader,
        generation=Generation(max_new_tokens=100),
        metric="IoU of at least 0.5",
        score=score,
        rules=("2024", "official"),
        rule_differences={
            "official": "whole numbers are thousandths however small they are (`[[0,0,1,2]]`), "
            "corners may come in any order, boxes are compared in double precision"
        },
        original_flags={"--sample": False},
        export=export,
        read_answers=read_answers,
        published=" / ".join(SPLITS[split] for split in splits),
        source="https://github.com/lichengunc/refer",
    )


REFCOCO = (
    _spec("refcoco", "RefCOCO, RefCOCO+ and RefCOCOg", tuple(SPLITS)),
    *(_spec(one.replace("_", "-"), one.replace("_", " "), (one,)) for one in SPLITS),
)
