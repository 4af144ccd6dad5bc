"""Releases of benchmarks of yes and no: MME and POPE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.releases.release import (
    Layout,
    Release,
    jsonl,
    linked,
)
from internvl_chat.evaluation.sources import read_jsonl, read_text, require
from internvl_chat.evaluation.tasks.wording import SHORT

MME_PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
MME_COGNITION = (
    *("commonsense_reasoning", "numerical_calculation"),
    *("text_translation", "code_reasoning"),
)


POPE_CATEGORIES = ("random", "popular", "adversarial")


def mme(release: Release) -> Layout:
    """Question lists in the place of the original evaluator's, from either layout of the release.

    A task's folder holds images and one text file for each, or ``images/`` and
    ``questions_answers_YN/``.
    """
    files: dict[str, str | bytes] = {}
    links = {}
    for task in (*MME_PERCEPTION, *MME_COGNITION):
        folder = release.folder(task)
        inner = folder / "questions_answers_YN"
        texts, images = (inner, folder / "images") if inner.is_dir() else (folder, folder)
        lines = []
        for path in sorted(texts.glob("*.txt")):
            image = _image_of(path.stem, images)
            lines += [f"{image}\t{question}\t{label}\n" for question, label in _mme_pair(path)]
        if not lines:
            raise DatasetError("holds no text files with questions", where=str(texts))
        files[f"eval/mme/Your_Results/{task}.txt"] = "".join(lines)
        links[f"data/mme/MME_Benchmark_release_version/{task}"] = images
    return Layout(files, links)


def _image_of(stem: str, images: Path) -> str:
    names = [f"{stem}{ending}" for ending in (".jpg", ".png", ".jpeg")]
    found = [name for name in names if (images / name).is_file()]
    if not found:
        raise DatasetError(f"no image {' or '.join(names)}", where=str(images))
    return found[0]


def _mme_pair(path: Path) -> list[tuple[str, str]]:
    """The two questions about an image, the one that is answered by Yes first."""
    pairs = []
    for line in read_text(path).splitlines():
        if not line.strip():
            continue
        question, _, label = line.strip().rpartition("\t")
        if label not in ("Yes", "No") or not question:
            raise DatasetError("want question, tab, Yes or No", where=str(path))
        pairs.append((question.strip(), label))
    if len(pairs) != 2:
        raise DatasetError(f"holds {len(pairs)} questions, want 2", where=str(path))
    return sorted(pairs, key=lambda pair: pair[1] != "Yes")


def pope(release: Release) -> Layout:
    """From ``coco_pope_{category}.json``, JSON lines; ids are numbers over all three."""
    rows: list[dict[str, Any]] = []
    labels = {}
    for category in POPE_CATEGORIES:
        path = release.file(f"coco_pope_{category}.json")
        labels[f"data/pope/coco/{path.name}"] = path
        for record, where in read_jsonl(path):
            rows.append(
                {
                    "question_id": len(rows),
                    "image": require(record, "image", where),
                    "text": f"{require(record, 'text', where)}\n{SHORT}",
                    "category": category,
                }
            )
    images = linked(release, {"data/pope/val2014": ["val2014"]})
    return Layout({"data/pope/llava_pope_test.jsonl": jsonl(rows)}, {**labels, **images})
