"""The meta JSON: which datasets a run trains on, and how often.

An object ``{name: {root, annotation, data_augment, repeat_time, length, …}}``. What can be known
without reading a record is checked here, and every problem of the file is reported at once.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from internvl_chat.config import DataConfig
from internvl_chat.data.encodings import UTF8, decode, encoding_of
from internvl_chat.data.meta_values import (
    VALUE_CHECKS,
    BoxFormat,
    has_controls,
)
from internvl_chat.data.storage import exists, is_url
from internvl_chat.errors import DatasetError, printable
from internvl_chat.model.suggestions import close_names

logger = logging.getLogger(__name__)

REQUIRED_KEYS = ("root", "annotation", "data_augment", "repeat_time", "length")
OPTIONAL_KEYS = ("max_samples", "max_dynamic_patch", "box_format", "weight")


MOST_SAMPLES: Final = 2**32
"""Of a dataset in an epoch: more is no training, and their order would not fit into memory."""


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
    max_samples: int | None = None
    """Only the first so many records count, before ``repeat_time``; None takes all."""
    max_dynamic_patch: int | None = None
    """Overrides the run's tile limit for this dataset."""
    box_format: BoxFormat = "keep"
    weight: float = 1.0
    """Multiplies the dataset's share under ``use_data_resampling``."""

    def limited(self, max_samples: int | None) -> DatasetSpec:
        """The dataset of a run that takes at most so many records of each: the smaller counts."""
        if max_samples is None or (self.max_samples or max_samples) < max_samples:
            return self
        return replace(self, max_samples=max_samples)

    def num_samples(self, num_records: int) -> int:
        """How many samples an epoch takes from ``num_records`` records (exact arithmetic)."""
        return math.floor(Fraction(repr(self.repeat_time)) * num_records)

    def repeat_problem(self, num_records: int) -> str | None:
        """What is wrong with ``repeat_time`` for so many records."""
        count = self.num_samples(num_records)
        told = f"repeat_time {self.repeat_time} of {num_records} records"
        if count == 0:
            return f"{told} leaves none"
        if count > MOST_SAMPLES:
            return f"{told} makes {count} samples an epoch, more than {MOST_SAMPLES}"
        return None


@dataclass(frozen=True, kw_only=True)
class MetaProblem:
    """Something about a meta JSON; ``data/check/codes.py`` says how bad it is."""

    code: str
    dataset: str | None
    problem: str
    mend: str
    where: str
    """The file, with a line where one is known."""

    @property
    def named_problem(self) -> str:
        """With the dataset's name."""
        return self.problem if self.dataset is None else f'entry "{self.dataset}": {self.problem}'

    @property
    def sentence(self) -> str:
        """With the dataset's name and the mend."""
        return f"{self.named_problem} {self.mend}".rstrip()


@dataclass(frozen=True, kw_only=True)
class MetaReading:
    """A meta JSON as far as it can be read."""

    specs: tuple[DatasetSpec, ...]
    """Entries whose root and annotation are known, in the file's order; what is wrong in them
    besides is as by default. Names may occur twice."""
    problems: tuple[MetaProblem, ...]
    warnings: tuple[MetaProblem, ...]


class _JsonObject(dict[str, Any]):
    """A JSON object that remembers repeated keys: json.loads would keep the last silently."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs
        seen: set[str] = set()
        self.repeated = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


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
    reading = read_meta(path)
    for warning in reading.warnings:
        logger.warning("%s: %s", warning.where, warning.sentence)
    problems = reading.problems
    if len(problems) == 1:
        raise DatasetError(problems[0].sentence, where=problems[0].where)
    if problems:
        listed = "\n  ".join(problem.sentence for problem in problems)
        raise DatasetError(f"{len(problems)} problems:\n  {listed}", where=str(path))
    return list(reading.specs)


def load_datasets(config: DataConfig) -> list[DatasetSpec]:
    """The datasets that a run's meta JSON names, each with at most the run's ``max_samples``.

    Raises:
        DatasetError: as of :func:`load_meta`.
    """
    return [spec.limited(config.max_samples) for spec in load_meta(config.meta_path)]


def read_meta(path: str | os.PathLike[str], *, needs_files: bool = True) -> MetaReading:
    """As :func:`load_meta`, but tells problems instead of raising, and goes on after each.

    Args:
        path: of the meta JSON.
        needs_files: whether an annotation that is not there is a problem; else its entry has the
            path as it is written.
    """
    meta_path = Path(path)
    table, problems, warnings = _parse(meta_path)
    specs: list[DatasetSpec] = []
    names: set[str] = set()
    for name, entry in table:
        checker = _Entry(name, meta_path)
        if name in names:
            checker.problem(
                "DUPLICATE_DATASET",
                f'two entries named "{name}"; JSON would silently keep the last',
                "Rename or delete one.",
            )
        names.add(name)
        spec = checker.check(entry, needs_files=needs_files)
        problems += checker.problems
        warnings += checker.warnings
        if spec is not None:
            specs.append(spec)
    return MetaReading(specs=tuple(specs), problems=tuple(problems), warnings=tuple(warnings))


_Table = list[tuple[str, Any]]


def _parse(path: Path) -> tuple[_Table, list[MetaProblem], list[MetaProblem]]:
    """(entries, problems, warnings) of the file."""
    where = str(path)

    def one(problem: str, mend: str, *, line: int | None = None, code: str = "META_FILE") -> Any:
        place = where if line is None else f"{where}:{line}"
        return MetaProblem(code=code, dataset=None, problem=problem, mend=mend, where=place)

    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        mend = "Check --meta_path; it is relative to the cwd."
        return [], [one("no such meta file.", mend)], []
    except IsADirectoryError:
        return [], [one("is a directory, want a meta JSON file.", "Name the .json in it.")], []
    except (OSError, ValueError) as err:  # a null character in the path is a ValueError
        return [], [one(f"cannot be read: {err}.", "Check the path and its permissions.")], []
    warnings = []
    encoding = encoding_of(raw[:4])
    if encoding != UTF8:
        shown = f"the file is in {encoding.upper()}."
        warnings.append(one(shown, "Save it as UTF-8.", code="UTF16"))
    try:
        text = decode(raw)
    except UnicodeDecodeError as err:
        return [], [one(f"not {encoding.upper()} ({err}).", "Re-encode the file.")], []
    if not text.strip():
        return [], [one("the meta file is empty.", "Describe a dataset in it.")], warnings
    try:
        table = json.loads(text, object_pairs_hook=_JsonObject)
    except json.JSONDecodeError as err:
        problem = one(f"not JSON: {err.msg} (column {err.colno}).", "", line=err.lineno)
        return [], [problem], warnings
    except (ValueError, RecursionError) as err:  # numbers of thousands of digits, deep nesting
        return [], [one(f"not JSON that can be read: {err}.", "Write it anew.")], warnings
    if not isinstance(table, _JsonObject):
        mend = 'Write {"my_dataset": {"root": …, "annotation": …, …}}.'
        shown = f"want an object of datasets, got a JSON {_json_type(table)}."
        return [], [one(shown, mend)], warnings
    if not table:
        return [], [one("names no dataset.", "Add at least one entry.")], warnings
    return table.pairs, [], warnings


def _json_type(value: object) -> str:
    names: dict[type, str] = {
        _JsonObject: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


class _Entry:
    """Checks one entry; what is wrong is collected."""

    def __init__(self, name: str, meta_path: Path) -> None:
        self.name, self.meta_path = name, meta_path
        self.problems: list[MetaProblem] = []
        self.warnings: list[MetaProblem] = []

    def problem(self, code: str, problem: str, mend: str = "") -> None:
        self.problems.append(self._problem(code, problem, mend))

    def _problem(self, code: str, problem: str, mend: str) -> MetaProblem:
        # JSON may spell halves of surrogate pairs, which no terminal takes.
        return MetaProblem(
            code=code,
            dataset=printable(self.name),
            problem=printable(problem),
            mend=printable(mend),
            where=str(self.meta_path),
        )

    def check(self, entry: object, *, needs_files: bool = True) -> DatasetSpec | None:
        """The dataset, if its root and annotation are known."""
        if not self.name.strip():
            self.problem("META_ENTRY", "the dataset's name is empty.", "Give it one.")
        if has_controls(self.name):
            self.problem("META_ENTRY", "the name holds control characters.", "Rename it.")
        if not isinstance(entry, _JsonObject):
            kind = _json_type(entry)
            self.problem("META_ENTRY", f"is a JSON {kind}, want an object with {REQUIRED_KEYS}.")
            return None
        self._check_keys(entry)
        values: dict[str, Any] = {}
        for key, check in VALUE_CHECKS.items():
            if key in entry:
                value, problem = check(key, entry[key])
                if problem:
                    self.problem("META_ENTRY", problem)
                else:
                    values[key] = value
        found = values.get("annotation")
        if found is not None and (needs_files or _resolve(found, self.meta_path) is not None):
            found = self._annotation(found)
        if found is None or "root" not in values:
            return None
        values["annotation"] = found
        values["root"] = _resolve_root(values["root"], self.meta_path)
        return DatasetSpec(name=self.name, **values)

    def _check_keys(self, entry: _JsonObject) -> None:
        known = REQUIRED_KEYS + OPTIONAL_KEYS
        for key in dict.fromkeys(entry.repeated):
            self.problem(
                "META_ENTRY",
                f'key "{key}" appears twice in one entry; JSON would silently keep the last.',
                "Delete one.",
            )
        for key in REQUIRED_KEYS:
            if key not in entry:
                close = close_names(key, sorted(set(entry) - set(REQUIRED_KEYS)))
                hint = f'Is "{close[0]}" a misspelling of it?' if close else ""
                self.problem("META_ENTRY", f'key "{key}" is missing.', hint)
        for key in entry:
            if key not in known:
                close = close_names(key, known, cutoff=0.0)
                problem = f'unknown key "{key}" is ignored; the nearest known key is "{close[0]}"'
                self.warnings.append(self._problem("META_KEY", problem, ""))

    def _annotation(self, value: str) -> str | None:
        """The annotation file, if it is there and of a kind that is read."""
        found = _resolve(value, self.meta_path)
        if found is not None and not os.path.isfile(found):
            kind = "a folder" if os.path.isdir(found) else "a pipe, a socket or a device"
            self.problem("ANNOTATION", f'annotation "{value}" is no file but {kind} ({found}).')
            return None
        if found is None:
            tried = " and ".join(_candidates(value, self.meta_path))
            self.problem(
                "ANNOTATION",
                f'annotation "{value}" does not exist (tried {tried}).',
                "Download it or correct the path.",
            )
            return None
        if not found.endswith((".jsonl", ".json")):
            self.problem("ANNOTATION", f'annotation "{value}" is no .jsonl or .json file.')
            return None
        return found


def _candidates(value: str, meta_path: Path) -> list[str]:
    if os.path.isabs(value):
        return [value]
    beside = os.path.join(str(meta_path.parent), value)
    return list(dict.fromkeys([value, beside]))


def _resolve(value: str, meta_path: Path) -> str | None:
    """The first candidate that exists; the working directory comes before the meta's folder."""
    for candidate in _candidates(value, meta_path):
        try:
            if os.path.exists(candidate or "."):
                return candidate
        except (ValueError, UnicodeEncodeError):  # no path on this system
            return None
    return None


def _resolve_root(value: str, meta_path: Path) -> str:
    """As given where no candidate exists; a URL is not looked at."""
    if is_url(value):
        return value
    found = (one for one in _candidates(value, meta_path) if exists(one or "."))
    return next(found, value)
