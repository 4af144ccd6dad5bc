"""Releases of multiple-choice benchmarks."""

from __future__ import annotations

import csv
import io

from internvl_chat.data.data_urls import (
    DataUrlError,
    forgiving_base64,
    is_data_url,
    read_data_url,
)
from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.releases.release import (
    Layout,
    Release,
    jsonl,
    linked,
    rows_of,
)
from internvl_chat.evaluation.sources import read_json, read_text, read_tsv, require
from internvl_chat.evaluation.tasks.wording import LETTER_EN

CHOICES = "ABCDE"


def scienceqa(release: Release) -> Layout:
    """Test questions with an image, in the order of ``pid_splits.json``."""
    path = release.file("problems.json")
    problems = read_json(path)
    order = require(read_json(release.file("pid_splits.json")), "test", "pid_splits.json")
    rows = []
    for identity in order:
        where = f"{path}, {identity}"
        problem = require(problems, str(identity), str(path))
        if not require(problem, "image", where):
            continue
        rows.append(
            {
                "image": f"data/scienceqa/images/test/{identity}/{problem['image']}",
                "question": require(problem, "question", where),
                "choices": require(problem, "choices", where),
                "answer": require(problem, "answer", where),
                "hint": problem.get("hint", ""),
            }
        )
    images = linked(release, {"data/scienceqa/images/test": ["images/test", "test"]})
    return Layout({"data/scienceqa/scienceqa_test_img.jsonl": jsonl(rows)}, images)


def seed(release: Release) -> Layout:
    """From ``SEED-Bench.json``; a video question's frame is ``{type id}_{question id}.png``."""
    path = release.file("SEED-Bench.json")
    rows = []
    for record, where in rows_of(read_json(path), "questions", path):
        identity = str(require(record, "question_id", where))
        if require(record, "data_type", where) == "image":
            image = f"SEED-Bench-image/{require(record, 'data_id', where)}"
        else:
            kind = require(record, "question_type_id", where)
            image = f"SEED-Bench-video-image/{kind}_{identity}.png"
        options = [
            f"{letter}. {require(record, f'choice_{letter.lower()}', where)}" for letter in "ABCD"
        ]
        text = "\n".join([require(record, "question", where), *options, LETTER_EN])
        answer = require(record, "answer", where)
        rows.append({"image": image, "text": text, "question_id": identity, "answer": answer})
    folders = {
        f"data/SEED/{name}": [name] for name in ("SEED-Bench-image", "SEED-Bench-video-image")
    }
    return Layout(
        {"data/SEED/seed.jsonl": jsonl(rows)},
        {"data/SEED/SEED-Bench.json": path, **linked(release, folders)},
    )


def mmvp(release: Release) -> Layout:
    """``Questions.csv`` as it is."""
    path = release.file("Questions.csv")
    header = next(csv.reader(io.StringIO(read_text(path))), [])
    missing = {"Question", "Options", "Correct Answer"} - set(header)
    if missing:
        raise DatasetError(f"has no column {', '.join(sorted(missing))}", where=f"{path}:1")
    images = linked(release, {"data/MMVP/MMVP Images": ["MMVP Images"]})
    return Layout({}, {"data/MMVP/Questions.csv": path, **images})


def ai2d(release: Release) -> Layout:
    """From VLMEvalKit's ``AI2D_TEST.tsv``, images included."""
    path = release.file("AI2D_TEST.tsv")
    records = list(read_tsv(path))
    cells = {require(one, "index", where): require(one, "image", where) for one, where in records}
    files: dict[str, str | bytes] = {}
    rows = []
    for record, where in records:
        index, image = record["index"], record["image"]
        raw = _decoded(cells.get(image, image), where)  # a cell may be the index of another row
        ending = ".png" if raw.startswith(b"\x89PNG") else ".jpg"
        name = f"data/ai2diagram/AI2D_TEST/{index}{ending}"
        options = [f"{one}. {record[one]}" for one in CHOICES if record.get(one)]
        files[name] = raw
        rows.append(
            {
                "image": name,
                "question": "\n".join([require(record, "question", where), *options, LETTER_EN]),
                "question_id": int(index) if index.isdecimal() else index,
                "answer": require(record, "answer", where),
            }
        )
    return Layout({"data/ai2diagram/test_vlmevalkit.jsonl": jsonl(rows), **files}, {})


def _decoded(cell: str, where: str) -> bytes:
    try:
        return read_data_url(cell).raw if is_data_url(cell) else forgiving_base64(cell)
    except DataUrlError as err:
        raise DatasetError(f"the image is no base64 ({err})", where=where) from err
