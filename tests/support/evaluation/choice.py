"""Invented data of MME, ScienceQA, Tiny LVLM, SEED, MMVP, RefCOCO, MVBench, laid out as theirs."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from internvl_chat.evaluation.tasks.mme import GROUPS, TASK_NAMES
from internvl_chat.evaluation.tasks.mvbench import MVBENCH_TASKS
from internvl_chat.evaluation.tasks.refcoco import SPLITS
from tests.support.evaluation.asking import draw

VIDEO = Path(__file__).parents[2] / "unit" / "data" / "greys.mp4"
"""20 frames, 10 a second."""


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def write_mme(root: Path, layout: Literal["lists", "beside", "folders"] = "lists") -> None:
    """An image per task and one more of existence, each with two questions.

    Args:
        root: the working directory.
        layout: question lists of the evaluator, or a text file per image, beside it or apart.
    """
    release = root / "data/mme/MME_Benchmark_release_version"
    for task in TASK_NAMES:
        suffix = ".png" if task in GROUPS["Cognition"] else ".jpg"
        images, texts = release / task, release / task
        if layout == "folders":
            images, texts = release / task / "images", release / task / "questions_answers_YN"
        listed = []
        for number in range(2 if task == "existence" else 1):
            stem = f"{task[:3]}_{number:04d}"
            draw(images / f"{stem}{suffix}", number)
            rows = [
                (f"Is there a {thing} in the image? Please answer yes or no.", truth)
                for thing, truth in (("kettle", "Yes"), ("fork", "No"))
            ]
            listed += [f"{stem}{suffix}\t{text}\t{truth}\n" for text, truth in rows]
            if layout != "lists":
                texts.mkdir(parents=True, exist_ok=True)
                content = "\n".join("\t".join(row) for row in rows)
                (texts / f"{stem}.txt").write_text(content, encoding="utf-8")
        if layout == "lists":
            path = root / f"eval/mme/Your_Results/{task}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(listed), encoding="utf-8")


def write_scienceqa(root: Path) -> None:
    """Six questions, two of them with a hint."""
    rows = [
        ("Which is a solid?", ["milk", "rock"], 1, "Look at the image."),
        ("Which animal barks?", ["cat", "Dog", "cow"], 1, ""),
        ("Which is warm?", ["ice", "snow", "tea", "rain", "hail"], 2, ""),
        ("Which is a metal? ", ["iron", "wood"], 0, "Metals shine.\nWood does not."),
        ("Which is round?", ["ball", "box"], 0, ""),
        ("Which flies?", ["stone", "bird"], 1, ""),
    ]
    folder = "data/scienceqa/images/test"
    records = []
    for number, (question, choices, answer, hint) in enumerate(rows):
        image = f"{folder}/{number + 5}/image.png"
        draw(root / image, number)
        records.append(
            {
                "image": image,
                "question": question,
                "choices": choices,
                "answer": answer,
                "hint": hint,
            }
        )
    _write_lines(root / "data/scienceqa/scienceqa_test_img.jsonl", records)


def write_tiny_lvlm(root: Path) -> None:
    """Two or three questions in each of the five groups; one image is asked about twice."""
    rows = {
        "Visual_Reasoning": [("a.png", "Is it on?", "yes"), ("b.png", "How many dogs?", ["2"])],
        "Visual_Perception": [
            ("a.png", "What is written on the sign?", ["open", "we are open"]),
            ("a.png", "Which colour is the sign?", ["red"]),
            ("b.png", "How many people?", "10000"),
        ],
        "Visual_Knowledge_Acquisition": [("a.png", "Which word?", "us"), ("b.png", "What?", ["x"])],
        "Visual_Commonsense": [("a.png", "Who?", ["the"]), ("b.png", "Where?", ["red hot"])],
        "Object_Hallucination": [("a.png", "A cat?", "no"), ("b.png", "A dog?", "yes")],
    }
    for group, questions in rows.items():
        folder = root / "data/tiny_lvlm/updated_datasets" / group
        records = [
            {"image_path": image, "question": text, "gt_answers": truth}
            for image, text, truth in questions
        ]
        for number, name in enumerate(sorted({record["image_path"] for record in records})):  # type: ignore[type-var]
            draw(folder / str(name), number)
        _write_json(folder / "dataset.json", records)


def write_seed(root: Path) -> None:
    """Eight questions of four of twelve types, two on videos; ids as text and as numbers."""
    names = (
        "Scene Understanding",
        "Instance Identity",
        "Instance Location",
        "Instance Attributes",
        "Instances Counting",
        "Spatial Relation",
        "Instance Interaction",
        "Visual Reasoning",
        "Text Understanding",
        "Action Recognition",
        "Action Prediction",
        "Procedure Understanding",
    )
    types = {name: number for number, name in enumerate(names, start=1)}
    rows = [(9001, 1, "B"), (9002, 1, "A"), (9003, 5, "C"), (9004, 5, "D"), (9005, 1, "A")]
    rows += [(9006, 9, "B"), (9007, 10, "A"), (9008, 10, "C")]
    records, labels = [], []
    for number, (identity, type_id, truth) in enumerate(rows):
        image = f"SEED-Bench-image/{number:06d}.png"
        draw(root / "data/SEED" / image, number)
        text = f"What is shown in {number}?\nA. One\nB. Two\nC. Three\nD. Four\n"
        text += "Answer with the option's letter from the given choices directly."
        shown = str(identity) if number % 2 else identity
        records.append({"image": image, "text": text, "question_id": shown, "answer": truth})
        kind = "image" if type_id <= 9 else "video"
        labels.append(
            {
                "question_id": str(identity),
                "question_type_id": type_id,
                "data_type": kind,
                "answer": truth,
            }
        )
    _write_lines(root / "data/SEED/seed.jsonl", records)
    _write_json(root / "data/SEED/SEED-Bench.json", {"question_type": types, "questions": labels})


def write_mmvp(root: Path, index_column: str = "lndex") -> None:
    """Four pairs."""
    rows = [
        ("Is the box open or shut?", "(a) Open (b) Shut", "(a)"),
        ("Is the box open or shut?", "(a) Open (b) Shut", "(b)"),
        ("Is it day, or night?", "(a) day (b) night", "(a)"),
        ("Is it day, or night?", "(a) day (b) night", "(b)"),
        ('Does it say "stop"?', "(a) Yes (b) No", "(b)"),
        ('Does it say "stop"?', "(a) Yes (b) No", "(a)"),
        ("How many legs?", "(a) Two (b) Three", "(a)"),
        ("How many legs?", "(a) Two (b) Three", "(b)"),
    ]
    path = root / "data/MMVP/Questions.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([index_column, "Question", "Options", "Correct Answer"])
        for number, row in enumerate(rows, start=1):
            writer.writerow([number, *row])
            draw(root / f"data/MMVP/MMVP Images/{number}.jpg", number)


def write_refcoco(root: Path) -> None:
    """Two expressions of the same box in each split, and one of another."""
    for number, split in enumerate(SPLITS):
        image = f"data/coco/train2014/COCO_train2014_{number:012d}.jpg"
        draw(root / image, number)
        sizes = {"image": image, "height": 480, "width": 640}
        rows = [
            ("left mug", [10.5, 20.0, 110.5, 220.0]),
            ("the mug at {left}", [10.5, 20.0, 110.5, 220.0]),
            ("whole image", [0, 0, 640, 480]),
        ]
        records = [{**sizes, "sent": sent, "bbox": box} for sent, box in rows]
        _write_lines(root / f"data/refcoco/{split}.jsonl", records)


def write_mvbench(root: Path) -> None:
    """A question of each of the twenty tasks, and a second one of the first."""
    for task in MVBENCH_TASKS:
        folder = root / "data/MVBench/video" / task.folder
        folder.mkdir(parents=True, exist_ok=True)
        name = "clip" if task.is_frames else "clip.mp4"
        if task.is_frames:
            for number in range(1, 13):
                draw(folder / name / f"{number:05d}.jpg", number)
        else:
            shutil.copy(VIDEO, folder / name)
        record: dict[str, Any] = {
            "video": name,
            "question": f"What happened in {task.stem}?",
            "candidates": ["Ate the sandwich.", "Took the book.", "Closed the door."],
            "answer": "Took the book.",
        }
        if task.is_bounded:
            record |= {"start": 0.5, "end": 1.5}
        records = [record]
        if task.stem == "action_sequence":
            again = {"question": "What came last?", "candidates": ["No", "Yes", "No"]}
            records.append({**record, **again, "answer": "No"})
        _write_json(root / f"data/MVBench/json/{task.stem}.json", records)
