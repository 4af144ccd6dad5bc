"""A model that says what a test wants, and the smallest of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.generate import Generated, Prepared
from internvl_chat.evaluation.runner import Outcome, plan_tasks, run_plans
from internvl_chat.evaluation.settings import RunSettings
from internvl_chat.evaluation.sources import ImageFile, read_jsonl
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
    Tiling,
)
from internvl_chat.train.distributed import DistributedState

ALONE = DistributedState(
    launcher="single",
    rank=0,
    local_rank=0,
    world_size=1,
    backend=None,
    device=torch.device("cpu"),
    master=None,
    notes=(),
)


@dataclass
class Scripted:
    """Answers by a rule; notes what it was asked."""

    say: Callable[[Question], str]
    batches: list[list[str]] = field(default_factory=list)
    """Ids of the questions of each call."""
    keywords: list[dict[str, Any]] = field(default_factory=list)
    """Of ``generate``, of each call."""

    def prepare(self, question: Question, tiling: Tiling) -> Prepared:
        """Opens the images, which may fail."""
        for source in question.images:
            source.open()
        return Prepared(question=question, tiles=None, num_patches=[])

    def answer(self, batch: Sequence[Prepared], settings: Mapping[str, Any]) -> list[Generated]:
        """What the rule says."""
        self.batches.append([one.question.id for one in batch])
        self.keywords.append(dict(settings))
        texts = [self.say(one.question) for one in batch]
        return [Generated(text=text, num_tokens=len(text.split())) for text in texts]

    def rows_at_once(self, length: int) -> int:
        """Always four."""
        return 4

    def describe(self) -> dict[str, Any]:
        """Nothing but a template."""
        return {"template": "Hermes-2"}


def run_scripted(
    settings: RunSettings, tasks: Sequence[TaskSpec], answerer: Scripted, **options: Any
) -> list[Outcome]:
    """Plan and run in this process."""
    plans = plan_tasks(settings, tasks, ALONE, lambda checkpoint: 5_000_000)
    return run_plans(settings, plans, ALONE, open_answerer=lambda *_: answerer, **options)


def settings_in(folder: Path, **changes: Any) -> RunSettings:
    """Of a run whose data, checkpoint and results lie in a folder."""
    checkpoint = folder / "pretrained/model"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "config.json").write_text("{}")
    values: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "folder": folder / "results",
        "export_folder": None,
        "root": DataRoot(folder=folder, lmu_data=folder / "lmu"),
        "rules": None,
        "batch_size": None,
        "limit": None,
        "seed": 0,
        "num_beams": None,
        "uses_original_beams": False,
        "temperature": 0.0,
        "samples": False,
        "top_k": None,
        "top_p": None,
        "max_new_tokens": None,
        "dynamic": False,
        "max_num": None,
        "num_segments": None,
        "load_in_8bit": False,
        "load_in_4bit": False,
        "compile": True,
        "spread": False,
        "use_cpu": True,
        "dtype": None,
        "workers": 2,
        "is_scored": True,
        "shows_answers": False,
        "table_format": "xlsx",
        "score_format": "csv",
    }
    return RunSettings(**(values | changes))


# -- sums: a task of two files --------------------------------------------------------------------

SUM_FILES = ("data/sums/easy.jsonl", "data/sums/hard.jsonl")


def write_sums(root: Path) -> None:
    """Two files with three questions each."""
    (root / "data/sums").mkdir(parents=True)
    for place, path in enumerate(SUM_FILES):
        rows = [{"a": n, "b": n + 10 * place, "image": f"{n}.png"} for n in range(3)]
        (root / path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def load_sums(root: DataRoot, rules: Rules) -> list[Question]:
    """``{key}/{row}`` are the ids."""
    questions = []
    for path in SUM_FILES:
        for number, (row, _) in enumerate(read_jsonl(root.folder / path)):
            image = root.folder / "data/sums" / row["image"]
            questions.append(
                Question(
                    id=f"{Path(path).stem}/{number}",
                    prompt=f"{row['a']} + {row['b']} ={' ' if rules == '2024' else ''}",
                    images=(ImageFile(str(image)),) if image.exists() else (),
                    record={"sum": row["a"] + row["b"]},
                )
            )
    return questions


def score_sums(given: ScoreInput) -> Score:
    """Share of right sums; ``official`` forgives a full stop."""
    hits = {}
    for one in given.questions:
        answer = given.answers[one.id]
        answer = answer.rstrip(".") if given.rules == "official" else answer
        hits[one.id] = float(answer == str(one.record["sum"]))
    mean = sum(hits.values()) / len(hits)
    return Score(metrics={"accuracy": mean}, printed=f"accuracy {mean}\n", per_sample=hits)


def read_sums(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """A JSON object from id to answer."""
    found: dict[str, str] = {}
    for path in files:
        try:
            found |= json.loads(path.read_text())
        except ValueError as err:
            raise DatasetError(f"is no JSON ({err})", where=str(path)) from err
    return found


def export_sums(given: ExportInput) -> Mapping[str, str]:
    """The same, stamped."""
    return {f"sums_{given.stamp}.json": json.dumps(dict(given.answers))}


SUMS = TaskSpec(
    id="sums",
    suite="internvl",
    title="Sums",
    data=tuple(DataFile(path=path, format="JSON lines: a, b") for path in SUM_FILES),
    load=load_sums,
    generation=Generation(max_new_tokens=5),
    metric="exact match",
    score=score_sums,
    rules=("2024", "later", "official"),
    export=export_sums,
    read_answers=read_sums,
)


def add(question: Question) -> str:
    """The right answer to a sum."""
    return str(question.record["sum"])
