"""The meta JSON: which datasets a run trains on, and how often.

An object ``{name: {root, annotation, data_augment, repeat_time, length, …}}``. What can be known
without reading a record is checked here, and every problem of the file is reported at once.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from internvl_chat.errors import DatasetError
from internvl_chat.model.suggestions import close_names, suggest

logger = logging.getLogger(__name__)

BoxFormat = Literal["keep", "unit_to_1000", "pixel_to_1000"]
BOX_FORMATS: tuple[BoxFormat, ...] = ("keep", "unit_to_1000", "pixel_to_1000")
REQUIRED_KEYS = ("root", "annotation", "data_augment", "repeat_time", "length")
OPTIONAL_KEYS = ("max_dynamic_patch", "box_format", "weight")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One entry of a meta JSON, checked."""

    name: str
    root: str
    """Directory that image and video paths of the records are relative to."""
    annotation: str
    """Existing ``.jsonl`` or ``.json`` file."""
    data_augment: bool = False
    """Whether images are re-encoded as JPEG at a random quality before resizing."""
    repeat_time: float = 1
    """1 whole; 0 < r < 1 the first floor(r*n) records; 2 two copies; 1.5 one copy and a half."""
    length: int | None = None
    """How many records the author promises; a wrong number is a warning in training."""
    max_dynamic_patch: int | None = None
    """Overrides the run's tile limit for this dataset."""
    box_format: BoxFormat = "keep"
    weight: float = 1.0
    """Multiplies the dataset's share under ``use_data_resampling``."""

    def num_samples(self, num_records: int) -> int:
        """How many samples an epoch takes from ``num_records`` records (exact arithmetic)."""
        return math.floor(Fraction(repr(self.repeat_time)) * num_records)


class _Duplicates:
    """Collects repeated keys while JSON is parsed: json.loads would keep the last silently."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                self.keys.append(key)
            table[key] = value
        return table


def load_meta(path: str | os.PathLike[str]) -> list[DatasetSpec]:
    """Read and check a meta JSON.

    Args:
        path: the file. ``root`` and ``annotation`` in it may be relative to the working directory
            (tried first) or to the file's own directory.

    Returns:
        The datasets in the file's order.

    Raises:
        DatasetError: the file is missing, empty, no JSON object, names no dataset, or an entry is
            wrong; the message names dataset and key for each problem.
    """
    meta_path = Path(path)
    table = _parse(meta_path)
    problems: list[str] = []
    specs: list[DatasetSpec] = []
    for name, entry in table.items():
        found: list[str] = []
        spec = _check_entry(name, entry, meta_path, found)
        problems += [f'entry "{name}": {problem}' for problem in found]
        if spec is not None:
            specs.append(spec)
    if len(problems) == 1:
        raise DatasetError(problems[0], where=str(meta_path))
    if problems:
        listed = "\n  ".join(problems)
        raise DatasetError(f"{len(problems)} problems:\n  {listed}", where=str(meta_path))
    return specs


def _parse(path: Path) -> dict[str, Any]:
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as err:
        raise DatasetError(
            "no such meta file", where=where, fix="Check --meta_path; it is relative to the cwd."
        ) from err
    except IsADirectoryError as err:
        raise DatasetError(
            "is a directory, want a meta JSON file", where=where, fix="Name the .json in it."
        ) from err
    except UnicodeDecodeError as err:
        raise DatasetError(f"not UTF-8 ({err})", where=where, fix="Re-encode the file.") from err
    if not text.strip():
        raise DatasetError("the meta file is empty", where=where, fix="Describe a dataset in it.")
    duplicates = _Duplicates()
    try:
        table = json.loads(text, object_pairs_hook=duplicates)
    except json.JSONDecodeError as err:
        raise DatasetError(
            f"not JSON: {err.msg} (column {err.colno})", where=f"{where}:{err.lineno}"
        ) from err
    if duplicates.keys:
        key = duplicates.keys[0]
        known = key in REQUIRED_KEYS + OPTIONAL_KEYS
        what = f'key "{key}" appears twice in one entry' if known else f'two entries named "{key}"'
        raise DatasetError(
            f"{what}; JSON would silently keep the last",
            where=where,
            fix="Delete one." if known else "Rename or delete one.",
        )
    if not isinstance(table, dict):
        raise DatasetError(
            f"want an object of datasets, got a JSON {_json_type(table)}",
            where=where,
            fix='Write {"my_dataset": {"root": …, "annotation": …, …}}.',
        )
    if not table:
        raise DatasetError("names no dataset", where=where, fix="Add at least one entry.")
    return table


def _json_type(value: object) -> str:
    names: dict[type, str] = {
        dict: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numeric_string(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _bad_type(key: str, value: object, want: str) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    text = f"{key} is {shown}, want {want}."
    if _numeric_string(value) or value in ("true", "false", "True", "False"):
        text += " Remove the quotes."
    return text


def _check_entry(
    name: str, entry: object, meta_path: Path, problems: list[str]
) -> DatasetSpec | None:
    if not name.strip():
        problems.append("the dataset's name is empty. Give it one.")
    if not isinstance(entry, dict):
        problems.append(f"is a JSON {_json_type(entry)}, want an object with {REQUIRED_KEYS}.")
        return None
    _warn_unknown_keys(name, entry, meta_path)
    for key in REQUIRED_KEYS:
        if key not in entry:
            close = close_names(key, sorted(set(entry) - set(REQUIRED_KEYS)))
            hint = f' Is "{close[0]}" a misspelling of it?' if close else ""
            problems.append(f'key "{key}" is missing.{hint}')

    values: dict[str, Any] = {}
    for key, check in _CHECKS.items():
        if key in entry:
            value, problem = check(key, entry[key])
            if problem:
                problems.append(problem)
            else:
                values[key] = value
    if "annotation" in values:
        found = _resolve(values["annotation"], meta_path)
        if found is None or not os.path.isfile(found):
            tried = " and ".join(_candidates(values["annotation"], meta_path))
            problems.append(
                f'annotation "{values["annotation"]}" does not exist (tried {tried}). '
                "Download it or correct the path."
            )
        elif not found.endswith((".jsonl", ".json")):
            problems.append(f'annotation "{values["annotation"]}" is no .jsonl or .json file.')
        values["annotation"] = found or values["annotation"]
    if "root" in values:
        values["root"] = _resolve(values["root"], meta_path) or values["root"]
    if problems:
        return None
    return DatasetSpec(name=name, **values)


def _warn_unknown_keys(name: str, entry: dict[str, Any], meta_path: Path) -> None:
    known = REQUIRED_KEYS + OPTIONAL_KEYS
    for key in entry:
        if key not in known:
            close = close_names(key, known, cutoff=0.0)
            logger.warning(
                '%s: entry "%s": unknown key "%s" is ignored; the nearest known key is "%s"',
                meta_path,
                name,
                key,
                close[0],
            )


def _candidates(value: str, meta_path: Path) -> list[str]:
    if os.path.isabs(value):
        return [value]
    beside = os.path.join(str(meta_path.parent), value)
    return list(dict.fromkeys([value, beside]))


def _resolve(value: str, meta_path: Path) -> str | None:
    """The first candidate that exists; the working directory comes before the meta's folder."""
    for candidate in _candidates(value, meta_path):
        if os.path.exists(candidate or "."):
            return candidate
    return None


_Checked = tuple[Any, str | None]


def _check_string(key: str, value: object) -> _Checked:
    if isinstance(value, str) and (value or key == "root"):
        return value, None
    return None, _bad_type(key, value, "a path")


def _check_bool(key: str, value: object) -> _Checked:
    if isinstance(value, bool):
        return value, None
    return None, _bad_type(key, value, "true or false")


def _check_positive(key: str, value: object) -> _Checked:
    if _is_number(value) and value > 0:  # type: ignore[operator]
        return value, None
    return None, _bad_type(key, value, "a number > 0")


def _check_length(key: str, value: object) -> _Checked:
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)  # published metas hold numbers in strings
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value, None
    return None, _bad_type(key, value, "a whole number >= 0 (the number of records)")


def _check_patches(key: str, value: object) -> _Checked:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value, None
    return None, _bad_type(key, value, "a whole number >= 1")


def _check_box_format(key: str, value: object) -> _Checked:
    if value in BOX_FORMATS:
        return value, None
    problem = _bad_type(key, value, f"one of {', '.join(BOX_FORMATS)}")
    return None, f"{problem} {suggest(str(value), BOX_FORMATS, cutoff=0.4)}".rstrip()


_CHECKS: dict[str, Callable[[str, object], _Checked]] = {
    "root": _check_string,
    "annotation": _check_string,
    "data_augment": _check_bool,
    "repeat_time": _check_positive,
    "length": _check_length,
    "max_dynamic_patch": _check_patches,
    "box_format": _check_box_format,
    "weight": _check_positive,
}
