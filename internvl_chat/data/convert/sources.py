"""The annotation files behind what a user names: one file of records, or a meta JSON of several."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.data.convert.files import is_array, require_file
from internvl_chat.data.meta import DatasetSpec, load_meta

_ENTRY_OPTIONS = (
    *("data_augment", "repeat_time", "max_samples"),
    *("max_dynamic_patch", "box_format", "weight"),
)


@dataclass(frozen=True)
class AnnotationSource:
    """One annotation file."""

    name: str
    annotation: Path
    root: str
    options: Mapping[str, Any]
    """Other keys of its entry in a meta JSON, where they are not the defaults."""

    @property
    def file_name(self) -> str:
        """The name as part of a file's name."""
        return self.name.replace(os.sep, "_")


def is_meta(path: Path) -> bool:
    """A ``.json`` that begins with an object is a meta JSON; with a list, it holds records.

    Raises:
        ConfigError: it is no file that can be read.
    """
    require_file(path)
    return path.suffix == ".json" and not is_array(path)


def annotation_sources(path: Path, root: Path | None = None) -> list[AnnotationSource]:
    """One for each dataset of a meta JSON, or the one file itself.

    Args:
        root: of a file's images; its own folder by default.

    Raises:
        ConfigError: it is no file that can be read.
        DatasetError: a meta JSON has a wrong entry.
    """
    if is_meta(path):
        return [_of_spec(spec) for spec in load_meta(path)]
    return [AnnotationSource(path.stem, path, str(root or path.parent), {})]


def _of_spec(spec: DatasetSpec) -> AnnotationSource:
    defaults = {field.name: field.default for field in dataclasses.fields(DatasetSpec)}
    options = {
        key: getattr(spec, key) for key in _ENTRY_OPTIONS if getattr(spec, key) != defaults[key]
    }
    return AnnotationSource(spec.name, Path(spec.annotation), spec.root, options)
