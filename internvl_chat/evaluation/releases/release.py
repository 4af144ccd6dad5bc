"""A release as it was unpacked, and the layout that is made of it; nothing is written."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.sources import require

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Layout:
    """What a task's folder shall hold, by path below the folder that holds ``data/``."""

    files: Mapping[str, str | bytes]
    """Path -> content."""
    links: Mapping[str, Path]
    """Path -> file or folder of the release, used as it is."""


class Release:
    """A folder, or a single file, that somebody has downloaded and unpacked."""

    def __init__(self, source: Path) -> None:
        if not source.exists():
            raise ConfigError("is not there", where=str(source), fix="SRC is what was downloaded.")
        self.source = source.resolve()

    def file(self, *names: str) -> Path:
        """The file of one of these names, anywhere below; the first name goes first.

        Raises:
            ConfigError: there is none, or two lie equally deep.
        """
        found = self.maybe_file(*names)
        if found is None:
            raise ConfigError(
                f"holds no {' or '.join(names)}", where=str(self.source), fix="Unpack it there."
            )
        return found

    def maybe_file(self, *names: str) -> Path | None:
        """The same, or None."""
        return self._find(names, folders=False)

    def maybe_folder(self, *names: str) -> Path | None:
        """The folder of one of these names (``test/png`` too), the source itself included."""
        for name in names:
            if (
                self.source.is_dir()
                and self.source.parts[-len(Path(name).parts) :] == Path(name).parts
            ):
                return self.source
        return self._find(names, folders=True)

    def folder(self, *names: str) -> Path:
        """The same.

        Raises:
            ConfigError: there is none.
        """
        found = self.maybe_folder(*names)
        if found is None:
            raise ConfigError(
                f"holds no folder {' or '.join(names)}", where=str(self.source), fix="Unpack it."
            )
        return found

    def _find(self, names: Sequence[str], *, folders: bool) -> Path | None:
        if self.source.is_file():
            return self.source if not folders and self.source.name in names else None
        for name in names:
            parts = Path(name).parts
            within = self._below[0 if folders else 1].get(parts[-1], ())
            found = [path for path in within if path.parts[-len(parts) :] == parts]
            found.sort(key=lambda path: (len(path.parts), str(path)))
            if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
                raise ConfigError(
                    f"{found[0]} and {found[1]} are both called {name}",
                    where=str(self.source),
                    fix="Name the folder that holds the right one.",
                )
            if found:
                return found[0]
        return None

    @cached_property
    def _below(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Folders and files by name; one walk, for there may be 100,000 images."""
        folders: dict[str, list[Path]] = {}
        files: dict[str, list[Path]] = {}
        for base, inner, names in os.walk(self.source):
            for table, found in ((folders, inner), (files, names)):
                for name in found:
                    table.setdefault(name, []).append(Path(base) / name)
        return folders, files


Reader = Callable[[Release], Layout]


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON lines, characters as they are; lone surrogates, which no file can hold, escaped."""
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "".join(_SURROGATE.sub(lambda one: f"\\u{ord(one[0]):04x}", one) + "\n" for one in texts)


def linked(release: Release, folders: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Image folders that the release has; those that it lacks are left to the user."""
    found = {path: release.maybe_folder(*names) for path, names in folders.items()}
    return {path: folder for path, folder in found.items() if folder is not None}


def rows_of(content: Any, name: str | None, path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Objects of a list, or of the list under a key, with their place."""
    items = content
    if name is not None:
        if not isinstance(content, dict):
            raise DatasetError("is no JSON object", where=str(path))
        items = require(content, name, str(path))
    if not isinstance(items, list):
        raise DatasetError(f"{name or 'the content'} is no list", where=str(path))
    for number, item in enumerate(items):
        where = f"{path}, record {number}"
        if not isinstance(item, dict):
            raise DatasetError("is no JSON object", where=where)
        yield item, where


def most_common(answers: Sequence[str]) -> str:
    """The answer that most people gave, the earliest of those with equal numbers."""
    return Counter(answers).most_common(1)[0][0] if answers else ""
