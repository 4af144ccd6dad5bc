"""Which published checkpoint a model began with, by what its runs and commands wrote down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports

from internvl_chat.checkpoint.hub import local_code
from internvl_chat.checkpoint.hub_names import path_hint
from internvl_chat.checkpoint.sources import CONFIG_NAME, read_json
from internvl_chat.checkpoint.surgery.merged import PROVENANCE_NAME
from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import ADAPTER_CONFIG_NAME

_RECORD = "arguments.json"
_OURS = {"adapter", "generation", "settings"}
"""Modules beside our model's code, which no published one has."""


def remembered_code(checkpoint: str) -> str:
    """The published checkpoint, or its name on the hub, that a checkpoint's training began with.

    Runs and commands are followed back (``arguments.json``, an adapter's base, ``provenance.json``)
    to the first model whose code is not ours.

    Args:
        checkpoint: a directory.

    Raises:
        CheckpointError: there is no such directory, nothing says which that is, or it is not there
            any more.
    """
    if not Path(checkpoint).is_dir():
        raise CheckpointError("no such directory", where=checkpoint, fix=path_hint(checkpoint))
    name, followed = checkpoint, [checkpoint]
    while not _has_foreign_code(Path(local_code(name))):
        before = _came_from(Path(local_code(name)))
        if before is None or before in followed:
            raise CheckpointError(
                f"nothing says with which published checkpoint it began ({' <- '.join(followed)})",
                where=checkpoint,
                fix="Give --code the folder of that checkpoint, or its name on the hub.",
            )
        name = before
        followed.append(name)
    return name


def _has_foreign_code(directory: Path) -> bool:
    config = directory / CONFIG_NAME
    auto_map = read_json(config).get("auto_map") if config.is_file() else None
    target = auto_map.get("AutoModel") if isinstance(auto_map, dict) else None
    file = directory / f"{str(target).partition('.')[0]}.py"
    return file.is_file() and not set(get_relative_imports(file)) >= _OURS


def _came_from(directory: Path) -> str | None:
    """The model that a directory says it was made from."""
    record, adapter, provenance = (
        read_json(directory / name) if (directory / name).is_file() else {}
        for name in (_RECORD, ADAPTER_CONFIG_NAME, PROVENANCE_NAME)
    )
    arguments: Any = record.get("arguments")
    history: Any = provenance.get("history")
    last = history[-1] if isinstance(history, list) and history else {}
    for found in (
        arguments.get("model_name_or_path") if isinstance(arguments, dict) else None,
        adapter.get("base_model_name_or_path"),
        re.split(r" \+ | on ", str(last.get("checkpoint") or ""))[0],
    ):
        if isinstance(found, str) and found:
            return found
    return None
