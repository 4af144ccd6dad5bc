"""VLMEvalKit's TSV files: cells as pandas reads them, images, questions.

Source: https://github.com/open-compass/VLMEvalKit, which reads with ``pandas.read_csv(sep="\\t")``.
Under ``official`` a cell is its text and only an empty one is missing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.sources import EncodedImage, ImageFile, read_tsv
from internvl_chat.evaluation.task import AS_STORED, ImageSource, Question, Rules

Cell = str | int | float | bool | None
"""None is missing (pandas' nan)."""
Row = dict[str, Cell]

PANDAS_MISSING = frozenset(
    [
        *(
            "",
            "#N/A",
            "#N/A N/A",
            "#NA",
            "-1.#IND",
            "-1.#QNAN",
            "-NaN",
            "-nan",
            "1.#IND",
            "1.#QNAN",
        ),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)
"""Texts that pandas takes for a missing value; the empty one is among them."""
_INTEGER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_FLOAT = re.compile(
    r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity)\s*", re.ASCII | re.IGNORECASE
)
_BOOLEANS = {
    **dict.fromkeys(("True", "TRUE", "true"), True),
    **dict.fromkeys(("False", "FALSE", "false"), False),
}
JPEG_QUALITY = 75
"""Pillow's default, with which VLMEvalKit writes images to files."""
LONGEST_REFERENCE = 64
"""An image cell that is not longer names another row."""


# -- cells ---------------------------------------------------------------------------------------


def pandas_column(texts: Sequence[str]) -> list[Cell]:
    """Cells of a column as pandas infers them from their texts.

    All integers: int, float if one is missing. All numbers: float. All truth values: bool. Else the
    texts as they are. So an option ``3`` becomes ``3.0`` where another row has no such option.
    """
    known = [text for text in texts if text not in PANDAS_MISSING]
    gaps = len(known) < len(texts)
    read: Callable[[str], Cell] = str
    if all(_INTEGER.fullmatch(text) for text in known):
        if _fits_64_bits(known):
            read = float if gaps else int
    elif all(_FLOAT.fullmatch(text) for text in known):
        read = float
    elif all(text in _BOOLEANS for text in known):
        read = _BOOLEANS.__getitem__
    return [None if text in PANDAS_MISSING else read(text) for text in texts]


def _fits_64_bits(texts: Sequence[str]) -> bool:
    numbers = [int(text) for text in texts]
    return not numbers or (
        min(numbers) >= -(2**63) and max(numbers) < (2**63 if min(numbers) < 0 else 2**64)
    )


def text_of(cell: Cell) -> str:
    """A cell in a prompt or a comparison; a missing one is ``nan`` as pandas' becomes."""
    return "nan" if cell is None else str(cell)


def literal(cell: Cell) -> Any:
    """A Python literal in a cell.

    Raises:
        ValueError: it is none.
    """
    try:
        return ast.literal_eval(cell) if isinstance(cell, str) else cell
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as err:
        raise ValueError(f"no literal: {cell!r:.80}") from err


def texts_of(cell: Cell) -> list[str]:
    """A list literal's items as texts; anything else alone."""
    text = text_of(cell)
    if text.startswith("[") and text.endswith("]"):
        try:
            return [str(item) for item in literal(text)]
        except ValueError:
            pass
    return [text]


# -- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TsvTable:
    """A TSV file, row by row."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    places: tuple[str, ...]
    """``file:line`` of each row's end."""
    images: tuple[str | None, ...]
    """The image cells, which are in no row; None for a missing one."""


def read_table(path: Path, rules: Rules) -> TsvTable:
    """Read a TSV by a set of rules; rows without image stay.

    Raises:
        DatasetError: missing, malformed, empty, or without an index.
    """
    read = list(read_tsv(path))
    if not read:
        raise DatasetError("has no rows", where=str(path))
    columns = list(read[0][0])
    for name in ("index", "question"):
        if name not in columns:
            raise DatasetError(
                f'has no column "{name}"', where=str(path), fix=f"It has {', '.join(columns)}."
            )
    missing = {""} if rules == "official" else PANDAS_MISSING
    images = [text_or_none(row.get("image", ""), missing) for row, _ in read]
    cells: dict[str, list[Cell]] = {}
    for name in columns:
        if name != "image":
            texts = [row[name] for row, _ in read]
            cells[name] = (
                [t or None for t in texts] if rules == "official" else pandas_column(texts)
            )
    cells["index"] = [*read_indices([row["index"] for row, _ in read], str(path))]
    return TsvTable(
        columns=tuple(columns),
        rows=tuple({name: cells[name][i] for name in cells} for i in range(len(read))),
        places=tuple(where for _, where in read),
        images=tuple(images),
    )


def text_or_none(text: str, missing: Collection[str]) -> str | None:
    """The text, None if it means a missing value."""
    return None if text in missing else text


def read_indices(texts: Sequence[str], where: str) -> list[int] | list[str]:
    """The index column: integers if all are, else texts.

    Raises:
        DatasetError: two rows have the same.
    """
    whole = all(re.fullmatch(r"\s*[+-]?\d+(?:\.0*)?\s*", text, re.ASCII) for text in texts)
    values: list[int] | list[str] = (
        [int(text.partition(".")[0]) for text in texts] if whole else list(texts)
    )
    seen: set[object] = set()
    for number, value in enumerate(values):
        if value in seen:
            raise DatasetError(f"row {number} has index {value} again", where=where)
        seen.add(value)
    return values


# -- images --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LostImage:
    """An image that the table promises and does not hold; an error when it is read."""

    label: str
    problem: str
    where: str

    def open(self, decode: DecodeConfig = AS_STORED) -> Image.Image:
        """See :class:`ImageSource`."""
        raise BadRecordError("NOT_AN_IMAGE", self.problem, where=self.where)


def resolve_images(table: TsvTable) -> dict[str, str | None]:
    """Image cell by index, references to other rows followed; None for one that leads nowhere."""
    cells = {str(row["index"]): cell for row, cell in zip(table.rows, table.images, strict=True)}
    resolved: dict[str, str | None] = {}
    for index, cell in cells.items():
        passed = {index}
        while cell is not None and len(cell) <= LONGEST_REFERENCE:
            if cell not in cells or cell in passed:
                cell = None
                break
            passed.add(cell)
            cell = cells[cell]
        resolved[index] = cell
    return resolved


def image_of(row: Row, cell: str | None, place: str, *, dataset: str, rules: Rules) -> ImageSource:
    """The one image that a question shows: the row's first.

    Args:
        row, place: the row and where it is.
        cell: base64 or a list literal of it; None if a reference leads nowhere.
        dataset: name of the folder below ``images/``.
    """
    index = row["index"]
    suffix = "jpg" if rules == "2024" else "png"
    paths = texts_of(row["image_path"]) if row.get("image_path") is not None else []
    if cell is None:
        label = f"{dataset}/{index}.{suffix}"
        return LostImage(label, "the image cell leads to no row with an image", place)
    is_list = cell.startswith("[") and cell.endswith("]")
    encoded = texts_of(cell) if is_list else [cell]
    if paths and (len(encoded) > 1 or rules != "2024"):
        name = paths[0]
    else:
        name = f"{index}_0.{suffix}" if len(encoded) > 1 else f"{index}.{suffix}"
    label = f"{dataset}/{name}"
    if not encoded:
        return LostImage(label, "the list of images is empty", place)
    as_jpeg = rules != "official" and name.lower().endswith((".jpg", ".jpeg"))
    return EncodedImage(encoded[0], label, JPEG_QUALITY if as_jpeg else None)


def image_file(row: Row, *, dataset: str, folder: Path) -> ImageSource:
    """The image of a table without an image column: ``image_path``, absolute or below images/."""
    name = texts_of(row["image_path"])[0]
    below = folder / "images" / dataset / name
    path = below if not Path(name).is_absolute() and below.exists() else Path(name)
    return ImageFile(str(path), f"{dataset}/{name}" if path == below else name)


# -- questions -----------------------------------------------------------------------------------


def find_table(folder: Path, file: str) -> Path:
    """The TSV, or the ``_local`` one with paths that VLMEvalKit makes of a large one."""
    path = folder / file
    local = path.with_name(f"{path.stem}_local.tsv")
    return local if not path.exists() and local.exists() else path


def load_questions(
    folder: Path, file: str, rules: Rules, prompt: Callable[[Mapping[str, Any]], str]
) -> list[Question]:
    """Questions of a TSV below ``LMUData``, those without image dropped as the original does.

    Args:
        folder: ``LMUData``.
        file: path below it, or an absolute one.
        prompt: of a row.

    Raises:
        DatasetError: see :func:`read_table`; no row has an image.
    """
    path = find_table(folder, file)
    table = read_table(path, rules)
    dataset = path.stem.removesuffix("_local")
    if rules == "2024" and dataset == "MMMU_DEV_VAL":
        dataset = "MMMU"
    has_images = "image" in table.columns
    resolved = resolve_images(table) if has_images else {}
    questions = []
    for row, cell, place in zip(table.rows, table.images, table.places, strict=True):
        index = str(row["index"])
        if has_images and cell is not None:
            source = image_of(row, resolved[index], place, dataset=dataset, rules=rules)
        elif not has_images and row.get("image_path") is not None:
            source = image_file(row, dataset=dataset, folder=folder)
        else:
            continue
        questions.append(Question(id=index, prompt=prompt(row), images=(source,), record=row))
    if not questions:
        raise DatasetError(
            "no row has an image", where=str(path), fix='Want a column "image" or "image_path".'
        )
    return questions
