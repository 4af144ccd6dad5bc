"""``data check --fix OUT``: a cleaned copy, and line by line what was changed in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import orjson

from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.check.findings import Finding
from internvl_chat.data.check.mending import one_line
from internvl_chat.data.check.records import ChunkFindings
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.storage import is_url
from internvl_chat.errors import ConfigError, DatasetError, printable
from internvl_chat.files import write_json

_KEEP, _REPLACE, _LEAVE_OUT = 0, 1, 2
_LONGEST_NAME: Final = 60
_BLOCK_RECORDS: Final = 1024

Action = Literal["changed", "left out"]


@dataclass
class _CleanedDataset:
    """What becomes of a dataset's records."""

    spec: DatasetSpec
    file: AnnotationFile
    actions: np.ndarray
    """(n,) uint8, on disk."""
    replacements: IO[bytes]
    """Lines in place of records, in their order."""
    num_kept: int = 0
    tally: Counter[str] = field(default_factory=Counter)


class Cleaner:
    """Collects what the check mends or leaves out, then writes the copy.

    Args:
        out: a folder that does not exist or is empty.

    Raises:
        ConfigError: it holds something.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(
                f"{out} exists and is not empty", where="--fix", fix="Name a new folder."
            )
        out.mkdir(parents=True, exist_ok=True)
        self.out = out.resolve()
        self._datasets: list[_CleanedDataset] = []
        self._changes = open(self.out / "changes.jsonl", "wb")  # noqa: SIM115

    def open(self, spec: DatasetSpec, file: AnnotationFile, folder: Path) -> None:
        """Begin with a dataset; ``folder`` is for temporary files."""
        number = len(self._datasets)
        actions = np.memmap(folder / f"a{number}", dtype=np.uint8, mode="w+", shape=(len(file),))
        replacements = open(folder / f"r{number}", "w+b")  # noqa: SIM115
        self._datasets.append(_CleanedDataset(spec, file, actions, replacements))

    def note(self, one: Finding, action: Action, done: str) -> None:
        """Note what happens about a finding of the meta or a whole file."""
        self._tell(one.dataset, one.file, one.line, action, one.code, done)

    def chunk(self, number: int, chunk: ChunkFindings) -> None:
        """Take what a chunk's mends say."""
        dataset = self._datasets[number]
        for record, line, notes in chunk.mends:
            dataset.actions[record] = _LEAVE_OUT if line is None else _REPLACE
            if line is not None:
                dataset.replacements.write(line + b"\n")
            action: Action = "left out" if line is None else "changed"
            for code, done in notes:
                self._tell_record(dataset, record, action, code, done)

    def duplicate(self, number: int, record: int, first: tuple[int, int], message: str) -> None:
        """Leave a later copy out, if the first one stays."""
        dataset, (other, other_record) = self._datasets[number], first
        if self._datasets[other].actions[other_record] == _LEAVE_OUT:
            return
        if dataset.actions[record] == _LEAVE_OUT:
            return
        # Its replacement, if there is one, is passed over when lines are written.
        dataset.actions[record] += 2
        self._tell_record(dataset, record, "left out", "DUPLICATE_RECORD", message)

    def write(self) -> str:
        """Write the copy; returns a summary.

        Raises:
            DatasetError: no record is left.
        """
        table: dict[str, dict[str, Any]] = {}
        lines = []
        for dataset in self._datasets:
            name = _free_name(dataset.spec.name, table)
            path = self.out / f"{_file_name(name, table, self.out)}.jsonl"
            dataset.num_kept = _write_lines(dataset, path)
            total = len(dataset.file)
            told = ", ".join(f"{count} {what}" for what, count in sorted(dataset.tally.items()))
            lines.append(
                f"{name}: {dataset.num_kept} of {total} records kept; {told or 'as it was'}"
            )
            if dataset.num_kept:
                table[name] = _entry(dataset.spec, path, dataset.num_kept)
            else:
                path.unlink()
        self._changes.close()
        if not table:
            raise DatasetError(
                "nothing is left to train on", where=str(self.out), fix="See changes.jsonl there."
            )
        write_json(self.out / "meta.json", table)
        return "\n".join([*lines, f"cleaned copy: {self.out / 'meta.json'}"])

    def _tell_record(
        self, dataset: _CleanedDataset, record: int, action: Action, code: str, done: str
    ) -> None:
        dataset.tally[f"{code} {action}"] += 1
        line = dataset.file.line(record)
        self._tell(dataset.spec.name, dataset.file.path, line, action, code, done)

    def _tell(
        self,
        dataset: str | None,
        file: str,
        line: int | None,
        action: Action,
        code: str,
        done: str,
    ) -> None:
        change = {
            "dataset": None if dataset is None else printable(dataset),
            "file": printable(file),
            "line": line,
            "action": action,
            "code": code,
            "what": printable(done),
        }
        self._changes.write(orjson.dumps(change) + b"\n")


def _write_lines(dataset: _CleanedDataset, path: Path) -> int:
    """Write the records that stay; returns how many."""
    dataset.replacements.seek(0)
    kept = 0
    total = len(dataset.file)
    with open(path, "wb") as target:
        for begin in range(0, total, _BLOCK_RECORDS):
            end = min(begin + _BLOCK_RECORDS, total)
            records = dataset.file.read_range(begin, end)
            actions = dataset.actions[begin:end].tolist()
            for action, (raw, _) in zip(actions, records, strict=True):
                replaced = action in (_REPLACE, _REPLACE + 2)
                line = dataset.replacements.readline() if replaced else one_line(raw) + b"\n"
                if action < _LEAVE_OUT:
                    target.write(line)
                    kept += 1
    dataset.replacements.close()
    return kept


def _free_name(name: str, taken: dict[str, Any]) -> str:
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}-{number}"
    return free


def _file_name(name: str, taken: dict[str, Any], folder: Path) -> str:
    safe = re.sub(r"[^\w.+-]", "_", name)[:_LONGEST_NAME].lstrip(".") or "dataset"
    return safe if not (folder / f"{safe}.jsonl").exists() else f"{safe}-{len(taken) + 1}"


def _entry(spec: DatasetSpec, path: Path, length: int) -> dict[str, Any]:
    """The dataset's entry in the new meta; its paths hold wherever the meta lies."""
    entry: dict[str, Any] = {
        "root": spec.root if is_url(spec.root) else _path_in_json(spec.root or ".", path.parent),
        "annotation": _path_in_json(str(path), path.parent),
        "data_augment": spec.data_augment,
        "repeat_time": spec.repeat_time,
        "length": length,
    }
    optional: Sequence[tuple[str, Any, Any]] = (
        ("max_samples", spec.max_samples, None),
        ("max_dynamic_patch", spec.max_dynamic_patch, None),
        ("box_format", spec.box_format, "keep"),
        ("weight", spec.weight, 1.0),
    )
    return entry | {key: value for key, value, default in optional if value != default}


def _path_in_json(path: str, folder: Path) -> str:
    """Absolute; relative to the new meta where JSON cannot hold a folder's name."""
    whole = os.path.abspath(path)
    if printable(whole) == whole:
        return whole
    # The working directory is tried before the meta's folder, whose name keeps them apart.
    return os.path.join("..", folder.name, os.path.relpath(whole, folder))
