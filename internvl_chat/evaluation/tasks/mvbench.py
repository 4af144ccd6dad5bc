"""MVBench: multiple choice over videos in twenty tasks (https://arxiv.org/abs/2311.17005)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import OpenQuestions, identity, read_records, require_text
from internvl_chat.evaluation.metrics.mvbench import is_match, letter_of, names_truth, truth_of
from internvl_chat.evaluation.sources import require, require_answer, require_plain
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
    VideoClip,
)

JSON = "data/MVBench/json"
VIDEO = "data/MVBench/video"
NUM_SEGMENTS = 16
FOLDER_RATE = 3.0
"""Frames per second of the folders of frames."""
INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail "
    "and movement of objects, and the action and pose of persons. Based on your observations, "
    "select the best option that accurately addresses the question.\n"
)
ENDING = "\nOnly give the best option."


@dataclass(frozen=True)
class MVBenchTask:
    """One of the twenty."""

    stem: str
    """Of its JSON file."""
    folder: str
    """Of its videos."""
    is_bounded: bool
    """Questions are about a stretch of the video."""
    is_frames: bool
    """A video is a folder of frames."""

    @property
    def title(self) -> str:
        """As it is printed."""
        return self.stem.replace("_", " ").title().replace("Fine Grained", "Fine-grained")


_STAR = "star/Charades_v1_480"
_CLEVRER = "clevrer/video_validation"
_PERCEPTION = "perception/videos"
MVBENCH_TASKS = tuple(
    MVBenchTask(stem, folder, is_bounded="bounded" in kind, is_frames="frames" in kind)
    for stem, folder, kind in (
        ("action_sequence", _STAR, "bounded"),
        ("action_prediction", _STAR, "bounded"),
        ("action_antonym", "ssv2_video", ""),
        ("fine_grained_action", "Moments_in_Time_Raw/videos", ""),
        ("unexpected_action", "FunQA_test/test", ""),
        ("object_existence", _CLEVRER, ""),
        ("object_interaction", _STAR, "bounded"),
        ("object_shuffle", _PERCEPTION, ""),
        ("moving_direction", _CLEVRER, ""),
        ("action_localization", "sta/sta_video", "bounded"),
        ("scene_transition", "scene_qa/video", ""),
        ("action_count", _PERCEPTION, ""),
        ("moving_count", _CLEVRER, ""),
        ("moving_attribute", _CLEVRER, ""),
        ("state_change", _PERCEPTION, ""),
        ("fine_grained_pose", "nturgbd", ""),
        ("character_order", _PERCEPTION, ""),
        ("egocentric_navigation", "vlnqa", ""),
        ("episodic_reasoning", "tvqa/frames_fps3_hq", "bounded frames"),
        ("counterfactual_inference", _CLEVRER, ""),
    )
)
"""In the order of evaluation."""


def load(root: DataRoot, rules: Rules) -> list[Question]:
    """Questions of all tasks."""
    return [
        _question(root, rules, task, identity(record, number, where), record, where)
        for task in MVBENCH_TASKS
        for number, (record, where) in enumerate(
            read_records(root.folder / JSON / f"{task.stem}.json")
        )
    ]


def _question(
    root: DataRoot,
    rules: Rules,
    task: MVBenchTask,
    own_id: str,
    record: dict[str, Any],
    where: str,
) -> Question:
    text = require_text(record, "question", where)
    candidates = require(record, "candidates", where)
    if not isinstance(candidates, list) or not candidates:
        raise DatasetError(f'"candidates" is {candidates!r}, want a list of texts', where=where)
    options = [f"({letter_of(n)}) {candidate}" for n, candidate in enumerate(candidates)]
    asked = "\n".join([f"Question: {text}", "Options:", *options]).rstrip()
    frames = "".join(f"Frame{n + 1}: <image>\n" for n in range(NUM_SEGMENTS))
    return Question(
        id=f"{task.stem}/{own_id}",
        prompt=f"{frames}{INSTRUCTION}\n{asked}{ENDING}",
        video=VideoClip(
            path=str(root.folder / VIDEO / task.folder / require_text(record, "video", where)),
            num_segments=NUM_SEGMENTS,
            bounds=_bounds(record, where) if task.is_bounded else None,
            frames_per_second=FOLDER_RATE if task.is_frames else None,
        ),
        max_tiles=1 if rules == "later" else None,
        record={
            "task": task.title,
            "text": text,
            "candidates": [str(one) for one in candidates],
            "truth": truth_of(candidates, require_plain(record, "answer", where)),
        },
    )


def _bounds(record: dict[str, Any], where: str) -> tuple[float, float]:
    start, end = (require(record, name, where) for name in ("start", "end"))
    if isinstance(start, int | float) and isinstance(end, int | float):
        return float(start), float(end)
    raise DatasetError(f"start and end are {start!r}, {end!r}, want seconds", where=where)


def score(given: ScoreInput) -> Score:
    """Percent of right answers, by task and over all."""
    hits: dict[str, list[bool]] = {}
    per_sample: dict[str, float] = {}
    for one in given.questions:
        answer, record = given.answers[one.id], one.record
        if given.rules == "official":
            hit = names_truth(answer, record["candidates"], record["truth"])
        else:
            hit = is_match(answer, record["truth"])
        hit = hit and one.id not in given.unanswered
        hits.setdefault(record["task"], []).append(hit)
        per_sample[one.id] = float(hit)
    metrics = {task: sum(row) / len(row) * 100 for task, row in hits.items()}
    everything = [hit for row in hits.values() for hit in row]
    if everything:
        metrics["Avg"] = sum(everything) / len(everything) * 100
    num_empty = sum(not given.answers[one.id] for one in given.questions) - len(given.unanswered)
    value = "wrong" if given.rules == "official" else "right, as the original counts them"
    return Score(
        metrics=metrics,
        printed=f"Evaluating MVBench ...\n{metrics}\n",
        per_sample=per_sample,
        notes=(f"{num_empty} empty answers count as {value}",) if num_empty else (),
    )


def export(given: ExportInput) -> Mapping[str, str]:
    """``MVBench_{stamp}.json``, of all ranks, and the scores beside it."""
    records = [
        {
            "question": one.prompt,
            "pred": given.answers[one.id],
            "gt": one.record["truth"],
            "task_type": one.record["task"],
        }
        for one in given.questions
    ]
    files = {f"MVBench_{given.stamp}.json": json.dumps(records)}
    if given.score is not None:
        final = json.dumps(dict(given.score.metrics))
        files[f"MVBench_{given.stamp}_result_final.json"] = final
    return files


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Answers of such lists; the scores beside them are passed over."""
    waiting = OpenQuestions(questions, lambda one: (one.record["task"], one.record["truth"]))
    answers = {}
    for path in files:
        if path.name.endswith("_result_final.json"):
            continue
        for record, where in read_records(path):
            key = tuple(require_plain(record, name, where) for name in ("task_type", "gt"))
            one = waiting.take(key, where, text=str(require(record, "question", where)))
            answers[one] = require_answer(record, "pred", where)
    return answers


MVBENCH = TaskSpec(
    id="mvbench",
    suite="internvl",
    title="MVBench",
    data=(
        *(
            DataFile(
                path=f"{JSON}/{task.stem}.json",
                format="JSON list: video, question, candidates (list), answer (one of them)"
                + (", start and end in seconds" if task.is_bounded else ""),
            )
            for task in MVBENCH_TASKS
        ),
        *(
            DataFile(
                path=f"{VIDEO}/{folder}",
                format="folders of frames, 00001.jpg and so on, three a second"
                if folder.startswith("tvqa")
                else "video files",
                is_folder=True,
            )
            for folder in dict.fromkeys(task.folder for task in MVBENCH_TASKS)
        ),
    ),
    load=load,
    generation=Generation(max_new_tokens=1000),
    metric="first word against the option's letter",
    score=score,
    rules=("2024", "later", "official"),
    rule_differences={
        "later": "with `--dynamic` a frame is one tile, unless `--max-num` says otherwise",
        "official": "an answer must name the right option, and no other, by letter or text; an "
        "empty answer and an article at its beginning name none",
    },
    export=export,
    read_answers=read_answers,
    original_beams=1,
    published="Avg: 50.975",
    source="https://github.com/OpenGVLab/Ask-Anything/tree/main/video_chat2",
)
