"""Entries of meta JSONs that conversions write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from internvl_chat.data.convert.files import refuse_existing
from internvl_chat.errors import ConfigError
from internvl_chat.files import write_json


def meta_entry(root: Path, annotation: Path, length: int, **options: Any) -> dict[str, Any]:
    """What stands behind a dataset's name; paths as they were typed, so from the same folder."""
    folder = root.as_posix()
    return {
        "root": folder if folder.endswith("/") else f"{folder}/",
        "annotation": annotation.as_posix(),
        "data_augment": False,
        "repeat_time": 1,
        "length": length,
        **options,
    }


def check_meta_target(path: Path, name: str, *, may_exist: bool) -> None:
    """Find out early whether an entry can be added.

    Raises:
        ConfigError: the file exists and was not named by the user, is no meta JSON, or has an
            entry of that name.
    """
    if not may_exist:
        refuse_existing(path)
    if path.exists() and name in _read(path):
        raise ConfigError(
            f'has an entry "{name}" already', where=str(path), fix="Name another with --name."
        )


def add_to_meta(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Add an entry to a meta JSON, or write a new one; the other entries stay as they are."""
    table = _read(path) if path.exists() else {}
    write_json(path, table | {name: entry})


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_twins)
    except (OSError, ValueError, RecursionError) as err:
        raise ConfigError(f"is no meta JSON ({err})", where=str(path)) from err
    if not isinstance(table, dict):
        raise ConfigError("is no meta JSON: want an object of datasets", where=str(path))
    return table


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice, of which rewriting would lose one")
    return table
