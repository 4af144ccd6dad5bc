"""Tiny LVLM-eHub: short answers in five groups (https://arxiv.org/abs/2308.03729)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.evaluation.joining import OpenQuestions, identity, read_records, require_text
from internvl_chat.evaluation.metrics.tiny_lvlm import holds_truth, is_hit
from internvl_chat.evaluation.sources import ImageFile, require, require_answer, require_plain
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
from internvl_chat.evaluation.tasks.wording import SHORT

GROUPS = (
    "Visual_Knowledge_Acquisition",
    "Object_Hallucination",
    "Visual_Commonsense",
    "Visual_Perception",
    "Visual_Reasoning",
)
"""In the guide's order; the original asks in that of a directory listing, and prints in the order
of its answer file."""
FOLDER = "data/tiny_lvlm/updated_datasets"


def load(root: DataRoot, rules: Rules) -> list[Question]:
    """Questions of the five groups."""
    questions = []
    for group in GROUPS:
        folder = f"{FOLDER}/{group}"
        for number, (record, where) in enumerate(
            read_records(root.folder / folder / "dataset.json")
        ):
            text = require_text(record, "question", where)
            image = f"{folder}/{require_text(record, 'image_path', where)}"
            questions.append(
                Question(
                    id=f"{group}/{identity(record, number, where)}",
                    prompt=f"{text} {SHORT}",
                    images=(ImageFile(str(root.folder / image), shown=image),),
                    record={
                        "group": group,
                        "text": text,
                        "image": image,
                        "truths": _truths(record, where),
                    },
                )
            )
    return questions


def _truths(record: dict[str, Any], where: str) -> Any:
    """One or a list, as the record says."""
    truths = require(record, "gt_answers", where)
    if isinstance(truths, list) and truths:
        return [require_plain({"gt_answers": one}, "gt_answers", where) for one in truths]
    return require_plain(record, "gt_answers", where)


def score(given: ScoreInput) -> Score:
    """Share of hits in each group, and the sum of these shares."""
    groups = {one.id: one.record["group"] for one in given.questions}
    hits: dict[str, list[bool]] = {groups[name]: [] for name in given.answers if name in groups}
    is_right = holds_truth if given.rules == "official" else is_hit
    per_sample = {}
    for one in given.questions:
        truths = one.record["truths"]
        golds = [str(gold) for gold in (truths if isinstance(truths, list) else [truths])]
        hit = is_right(given.answers[one.id], golds)
        hits[one.record["group"]].append(hit)
        per_sample[one.id] = float(hit)
    metrics: dict[str, float] = {group: sum(row) / len(row) for group, row in hits.items()}
    metrics["Overall"] = sum(metrics.values())
    lines = ["Evaluating updated_datasets ..."]
    lines += [f"{name}: {value}" for name, value in metrics.items()]
    return Score(metrics=metrics, printed="\n".join(lines) + "\n", per_sample=per_sample)


def export(given: ExportInput) -> Mapping[str, str]:
    """``updated_datasets_{stamp}.json``, a list with an object per question."""
    records = [
        {
            "question": one.prompt,
            "answer": given.answers[one.id],
            "gt_answers": one.record["truths"],
            "image_path": one.record["image"],
            "task_type": one.record["group"],
        }
        for one in given.questions
    ]
    return {f"updated_datasets_{given.stamp}.json": json.dumps(records)}


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such a list; an image is known by its group and name."""
    waiting = OpenQuestions(questions, lambda one: Path(one.record["image"]).parts[-2:])
    answers = {}
    for path in files:
        for record, where in read_records(path):
            image = Path(str(require(record, "image_path", where))).parts[-2:]
            one = waiting.take(image, where, text=str(require(record, "question", where)))
            answers[one] = require_answer(record, "answer", where)
    return answers


TINY_LVLM = TaskSpec(
    id="tiny_lvlm",
    suite="internvl",
    title="Tiny LVLM-eHub",
    data=tuple(
        DataFile(
            path=f"{FOLDER}/{group}/dataset.json",
            format="JSON list: image_path (a file beside it), question, gt_answers (text or list)",
        )
        for group in GROUPS
    ),
    load=load,
    generation=Generation(max_new_tokens=30),
    metric="truth contained in the answer, sum of five groups",
    score=score,
    rules=("2024", "official"),
    rule_differences={
        "official": "commas, question marks and capitals go before words are compared, and a comma "
        "between digits alone goes; a right answer of articles alone (`a`) is not in every answer"
    },
    export=export,
    read_answers=read_answers,
    published="Overall: 3.53909090909091",
    source="https://github.com/OpenGVLab/Multi-Modality-Arena",
)
