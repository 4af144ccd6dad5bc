"""MMBench and CCBench with invented questions, each as a TSV with drawn images in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)
OBJECTS = ("object_localization", "finegrained_perception (instance-level)")
SCENES = ("image_scene", "coarse_perception")
Row = tuple[int, str, str, Sequence[str], str, tuple[str, str]]
"""Index, question, hint, options, answer, (category, l2-category)."""

ROWS: list[Row] = [
    (12, "What is on the plate?", "", ("soup", "cake", "", ""), "B", OBJECTS),
    (1_000_012, "What is on the plate?", "", ("cake", "soup", "", ""), "A", OBJECTS),
    (13, "How many forks?", "Look left.", ("1", "2", "3", ""), "C", OBJECTS),
    (1_000_013, "How many forks?", "Look left.", ("3", "1", "2", ""), "A", OBJECTS),
    (2_000_013, "How many forks?", "Look left.", ("2", "3", "1", ""), "B", OBJECTS),
    (14, 'Who says "hello"?', "", ("man", "woman", "None", "1"), "C", SCENES),
    (1_000_014, 'Who says "hello"?', "", ("None", "man", "woman", "1"), "A", SCENES),
    (15, "Which room?", "", ("kitchen", "bath", "attic", "2"), "A", SCENES),
]
ANSWERS = {
    "12": "B",
    "1000012": "A. cake",
    "13": "C",
    "1000013": "There are 3.",
    "2000013": "b",
    "14": "C",
    "1000014": "",
    "15": "Answer: A",
}


def write_table(root: Path, name: str, *, has_answers: bool, columns: Sequence[str]) -> None:
    """``data/mmbench/{name}.tsv``; the second row shares the image of the first."""
    names = [one for one in columns if has_answers or one != "answer"]
    lines = ["\t".join(names)]
    for number, (index, question, hint, options, answer, groups) in enumerate(ROWS):
        cells = {
            "index": str(index),
            "question": '"{}"'.format(question.replace('"', '""')),
            "hint": hint,
            **dict(zip("ABCD", options, strict=True)),
            "answer": answer,
            "category": groups[0],
            "image": "12" if number == 1 else _image(number),
            "source": "drawn",
            "l2-category": groups[1],
            "comment": "",
            "split": "dev" if has_answers else "test",
        }
        lines.append("\t".join(cells[one] for one in names))
    folder = root / "data/mmbench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")


def _image(number: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (number, 0, 0)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


CCBENCH_COLUMNS = ("index", "question", "A", "B", "C", "D", "answer", "category", "image")


def _writer(name: str, *, has_answers: bool) -> Callable[[Path], None]:
    return partial(write_table, name=name, has_answers=has_answers, columns=COLUMNS)


WRITERS: dict[str, Callable[[Path], None]] = {
    "mmbench-dev-en": _writer("mmbench_dev_20230712", has_answers=True),
    "mmbench-test-en": _writer("mmbench_test_en_20231003", has_answers=False),
    "mmbench-dev-cn": _writer("mmbench_dev_cn_20231003", has_answers=True),
    "mmbench-test-cn": _writer("mmbench_test_cn_20231003", has_answers=False),
    "ccbench-dev": partial(
        write_table, name="CCBench_legacy", has_answers=True, columns=CCBENCH_COLUMNS
    ),
}
