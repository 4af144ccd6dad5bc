"""SEED-Bench: multiple choice over images and, by one frame each, videos
(https://arxiv.org/abs/2307.16125)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import answers_by_id, json_lines, require_text
from internvl_chat.evaluation.metrics.letters import named_letter
from internvl_chat.evaluation.sources import (
    ImageFile,
    read_json,
    read_jsonl,
    require,
    require_list,
    require_plain,
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
from internvl_chat.evaluation.tasks.wording import NAMED_LETTER

QUESTIONS = "data/SEED/seed.jsonl"
LABELS = "data/SEED/SEED-Bench.json"
IMAGES = "data/SEED"
LAST_IMAGE_TYPE = 9
"""Types 1 to 9 are about images, the others about videos."""
OPTIONS = "ABCD"


@dataclass(frozen=True)
class _Label:
    type_id: int
    truth: str


def load(root: DataRoot, rules: Rules) -> list[Question]:
    """Questions with the label file's truth and type."""
    path = root.folder / LABELS
    names, labels, num_labels = _labels(path)
    questions = []
    for record, where in read_jsonl(root.folder / QUESTIONS):
        question_id = require_plain(record, "question_id", where)
        label = labels.get(str(question_id))
        if label is None:
            raise DatasetError(f"question {question_id} is not in {path}", where=where)
        image = f"{IMAGES}/{require_text(record, 'image', where)}"
        questions.append(
            Question(
                id=str(question_id),
                prompt=require_text(record, "text", where),
                images=(ImageFile(str(root.folder / image), shown=image),),
                record={
                    "question_id": question_id,
                    "answer": require_plain(record, "answer", where),
                    "truth": label.truth,
                    "type_id": label.type_id,
                    "type_names": names,
                    "num_labels": num_labels,
                },
            )
        )
    return questions


def _labels(path: Path) -> tuple[dict[str, int], dict[str, _Label], int]:
    """Names of the types with their numbers, labels by question id, and how many there are."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError("is no JSON object", where=str(path))
    names = require(content, "question_type", str(path))
    if not isinstance(names, dict):
        raise DatasetError('"question_type" is no object', where=str(path))
    known = {require_plain(names, name, f"{path}, question_type") for name in names}
    labels: dict[str, _Label] = {}
    records = require_list(content, "questions", str(path))
    for number, record in enumerate(records):
        where = f"{path}, question {number}"
        if not isinstance(record, dict):
            raise DatasetError("is no JSON object", where=where)
        type_id: Any = require_plain(record, "question_type_id", where)
        if type_id not in known:
            raise DatasetError(f"question_type_id {type_id!r} has no name", where=where)
        truth = require_text(record, "answer", where)
        labels[str(require(record, "question_id", where))] = _Label(type_id, truth)
    return names, labels, len(records)


def score(given: ScoreInput) -> Score:
    """Accuracy of each type, of all questions, of those on images and of those on videos."""
    by_type: dict[int, list[bool]] = {}
    per_sample: dict[str, float] = {}
    same, num_empty = [], 0
    names: dict[str, int] = {}
    num_labels = 0
    for one in given.questions:
        answer, record = given.answers[one.id], one.record
        names, num_labels = record["type_names"], record["num_labels"]
        said = named_letter(answer, OPTIONS) if given.rules == "official" else answer[:1]
        hit = said == record["truth"]
        by_type.setdefault(record["type_id"], []).append(hit)
        per_sample[one.id] = float(hit)
        same.append(answer == record["answer"])
        num_empty += not answer
    metrics: dict[str, float | None] = {"Acc@1": sum(same) / len(same) if same else None}
    metrics |= {
        name: _percent(by_type[number]) for name, number in names.items() if number in by_type
    }
    all_hits = [hit for hits in by_type.values() for hit in hits]
    of_image = [hit for number in by_type if _is_image(number) for hit in by_type[number]]
    of_video = [hit for number in by_type if not _is_image(number) for hit in by_type[number]]
    totals = {"Total": all_hits, "Image": of_image, "Video": of_video}
    metrics |= {f"{name} accuracy": _percent(hits) for name, hits in totals.items()}
    return Score(
        metrics=metrics,
        printed=_printed(metrics, num_labels),
        per_sample=per_sample,
        notes=(f"{num_empty} empty answers count as wrong",) if num_empty else (),
    )


def _is_image(type_id: int) -> bool:
    return 1 <= type_id <= LAST_IMAGE_TYPE


def _percent(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) * 100 if hits else None


def _printed(metrics: Mapping[str, float | None], length: int) -> str:
    """A group without a question has no line; the length is that of the label file."""
    lines = ["Evaluating SEEDv1 ...", f"Acc@1: {metrics['Acc@1']}", f"length: {length}"]
    lines.append("Accuracy for each data type:")
    for name, value in metrics.items():
        if name == "Acc@1" or value is None:
            continue
        start = name if name.endswith(" accuracy") else f"Data type {name}"
        lines.append(f"{start}: {value:.2f}%")
    return "\n".join(lines) + "\n"


def export(given: ExportInput) -> Mapping[str, str]:
    """``SEEDv1_{stamp}.jsonl``"""
    records: list[dict[str, Any]] = [
        {
            "question_id": one.record["question_id"],
            "question": one.prompt,
            "prediction": given.answers[one.id],
            "answer": one.record["answer"],
        }
        for one in given.questions
    ]
    return {f"SEEDv1_{given.stamp}.jsonl": json_lines(records)}


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such a file, by ``question_id``."""
    records = (row for path in files for row in read_jsonl(path))
    return answers_by_id(records, questions, id_field="question_id", answer_field="prediction")


SEED = TaskSpec(
    id="seed",
    suite="internvl",
    title="SEED-Bench",
    data=(
        DataFile(
            path=QUESTIONS,
            format="JSON lines: image (below data/SEED), text with the options and the "
            "instruction, question_id, answer (letter)",
        ),
        DataFile(
            path=LABELS,
            format="JSON: question_type (name: number), questions (list of question_id, "
            "question_type_id, answer)",
        ),
    ),
    load=load,
    generation=Generation(max_new_tokens=100),
    metric="first letter",
    score=score,
    rules=("2024", "official"),
    rule_differences={"official": NAMED_LETTER},
    export=export,
    read_answers=read_answers,
    published="70.43 / 76.44 / 47.67",
    source="https://github.com/AILab-CVC/SEED-Bench",
)
