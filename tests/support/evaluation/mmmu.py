"""MMMU with invented questions, in the layouts in which a local copy may lie."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

ANIMALS = "['cat', 'Dog', 'a', 'None of these']"
Row = tuple[str, str, str, str, int]
"""Question, options, answer, type, number of images."""

ROWS: dict[str, list[Row]] = {
    "Accounting": [
        ("What does <image 1> cost?", "['$1', '$2', '$3']", "B", "multiple-choice", 1),
        ("Which row of <image 1>?", "[' one', 'two ', '3']", "C", "multiple-choice", 1),
        ("The ratio in <image 1>?", "[]", "1.06", "open", 1),
        ("Profit over loss?", "[]", "['24/7', '3.429']", "open", 1),
    ],
    "Art": [
        ("Which is older?", "['<image 2>', '<image 3>']", "A", "multiple-choice", 3),
        (" What is painted in <image 1>? ", ANIMALS, "D", "multiple-choice", 1),
        ("What is drawn?", ANIMALS, "B", "multiple-choice", 1),
    ],
    "Math": [
        ("The slope in <image 1>?", "['1', '2', '-1', '0']", "B", "multiple-choice", 1),
        ("How many roots?", "[]", "5", "open", 1),
        ("Its area?", "[]", "12", "open", 1),
    ],
    "Sociology": [
        ("Which group?", "['men', \"women's\"]", "B", "multiple-choice", 1),
        ("Which pet?", ANIMALS, "C", "multiple-choice", 1),
    ],
}
ANSWERS = {
    "Accounting_1": "B",
    "Accounting_2": "(C)",
    "Accounting_3": "The value is 1.06",
    "Accounting_4": "3.43",
    "Art_1": "A.",
    "Art_2": "Dog",
    "Art_3": "b",
    "Math_1": "",
    "Math_2": "15",
    "Math_3": "12.0",
    "Sociology_1": "Answer: B",
    "Sociology_2": "the answer is Dog",
}


def rows_of(subject: str, split: str) -> list[dict[str, Any]]:
    """Records without images; the answers of test are not given."""
    return [
        {
            "id": f"{split}_{subject}_{number}",
            "question": question,
            "options": options,
            "answer": "?" if split == "test" else answer,
            "question_type": kind,
            "num_images": num_images,
        }
        for number, (question, options, answer, kind, num_images) in enumerate(
            ROWS[subject], start=1
        )
    ]


def png(shade: int) -> bytes:
    """A small image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def shade_of(row: int, image: int) -> int:
    """The colour by which a test knows an image."""
    return 40 * row + image


def write_mmmu(root: Path, *, split: str, form: str = "parquet") -> None:
    """A split below ``root/data/MMMU``, as ``parquet``, ``arrow`` or ``jsonl``."""
    write = {"parquet": _write_parquet, "arrow": _write_arrow, "jsonl": _write_json_lines}[form]
    for subject in ROWS:
        write(root / "data/MMMU", subject, split)


def _write_json_lines(folder: Path, subject: str, split: str) -> None:
    (folder / subject / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for row, record in enumerate(rows_of(subject, split)):
        for image in range(1, 8):
            record[f"image_{image}"] = None
            if image <= record["num_images"]:
                name = f"images/{record['id']}_{image}.png"
                (folder / subject / name).write_bytes(png(shade_of(row, image)))
                record[f"image_{image}"] = name
        del record["num_images"]
        lines.append(json.dumps(record))
    (folder / subject / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def _table(subject: str, split: str) -> Any:
    import pyarrow

    records = rows_of(subject, split)
    cell = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns: dict[str, Any] = {
        name: [record[name] for record in records]
        for name in ("id", "question", "options", "answer", "question_type")
    }
    for image in range(1, 8):
        columns[f"image_{image}"] = pyarrow.array(
            [
                {"bytes": png(shade_of(row, image)), "path": None}
                if image <= record["num_images"]
                else None
                for row, record in enumerate(records)
            ],
            cell,
        )
    return pyarrow.table(columns)


def _write_parquet(folder: Path, subject: str, split: str) -> None:
    import pyarrow.parquet

    (folder / subject).mkdir(parents=True, exist_ok=True)
    path = folder / subject / f"{split}-00000-of-00001.parquet"
    pyarrow.parquet.write_table(_table(subject, split), path, row_group_size=2)


def _write_arrow(folder: Path, subject: str, split: str) -> None:
    import pyarrow

    place = folder / "MMMU___mmmu" / subject / "0.0.0" / "0a1b2c"
    place.mkdir(parents=True, exist_ok=True)
    table = _table(subject, split)
    with pyarrow.ipc.new_stream(str(place / f"mmmu-{split}.arrow"), table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], None]] = {
    "mmmu-dev": partial(write_mmmu, split="dev"),
    "mmmu-val": partial(write_mmmu, split="validation"),
    "mmmu-test": partial(write_mmmu, split="test"),
}
