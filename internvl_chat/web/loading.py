"""Checkpoints on disk -> what the page talks to, each under a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from internvl_chat.chat.loading import load_model, require_loadable
from internvl_chat.chat.media import image_config_of
from internvl_chat.checkpoint.hub import local_model
from internvl_chat.data.images import require_backend
from internvl_chat.web.answering import Answering, Checkpoint


def load(paths: list[str], *, compile: bool = True, **options: Any) -> Answering:
    """Load checkpoints for :func:`server.serve`.

    Args:
        paths: one or two; or models on the hub.
        compile, **options: of ``load_model``, the same for all.

    Raises:
        CheckpointError: one of them is none.
        ConfigError: no such device, or a package that it decodes images with is not installed.
    """
    disable_progress_bar()
    local = [local_model(path) for path in paths]
    for path in local:  # the second one, too, before seconds go into the first
        require_loadable(path, **options)
    checkpoints = []
    for name, path in zip(names_of(paths), local, strict=True):
        loaded, tokenizer = load_model(path, compile=compile, **options)
        require_backend(image_config_of(loaded.config).decode)
        checkpoints.append(Checkpoint(name=name, model=loaded, tokenizer=tokenizer))
    return Answering(checkpoints)


def names_of(paths: list[str]) -> list[str]:
    """Folder names; with as many parents as it takes to tell them apart, else numbered."""
    parts = [Path(path).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, start=1)]
