"""What a run takes from the chat checkpoint it starts from, unless it is told otherwise.

Image size, tiling, template and pixel shuffle belong to the weights: a checkpoint keeps them, and a
run that continues it goes on as it was made. A flag that is given goes first, and where it
contradicts the checkpoint the run says so before it loads anything. A model made of parts has no
such file: there the flags' defaults count.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from internvl_chat.checkpoint.artifacts import normalize_type_of
from internvl_chat.checkpoint.sources import read_chat_config
from internvl_chat.errors import CheckpointError

logger = logging.getLogger(__name__)

_OF_CONFIG: Final = {
    "conv_style": "template",
    "force_image_size": "image_size",
    "down_sample_ratio": "downsample_ratio",
    "vision_select_layer": "select_layer",
    "ps_version": "ps_version",
    "pad2square": "pad2square",
    "dynamic_image_size": "dynamic_image_size",
    "use_thumbnail": "use_thumbnail",
    "min_dynamic_patch": "min_dynamic_patch",
    "max_dynamic_patch": "max_dynamic_patch",
}
"""Flag -> attribute of the checkpoint's configuration."""
KEPT_FLAGS: Final = (*_OF_CONFIG, "normalize_type")
_OF_TILING: Final = ("use_thumbnail", "min_dynamic_patch", "max_dynamic_patch")
_CONSEQUENCES: Final = {
    "force_image_size": "position embeddings are resized, so the whole model is saved and no "
    "adapter",
    "conv_style": "the model was trained to answer in the other's form",
    "normalize_type": "the vision tower sees other colours than it was trained on",
    "ps_version": "image tokens come in another order than the projector was trained on",
    "down_sample_ratio": "the projector was trained for another number of image tokens",
    "vision_select_layer": "the projector was trained on another layer's output",
}


def kept_by(path: str | None) -> dict[str, Any]:
    """The flags that a chat checkpoint keeps, by name; empty where there is none to read.

    What is wrong with its files is left to the checks that tell it with everything else.

    Args:
        path: of a checkpoint of any kind, an adapter too.
    """
    if not path:
        return {}
    try:
        config = read_chat_config(path)
        kept = {flag: getattr(config, name) for flag, name in _OF_CONFIG.items()}
        kept["normalize_type"] = normalize_type_of(Path(path))
    except CheckpointError:
        return {}
    return {flag: value for flag, value in kept.items() if value is not None}


def system_message_of(path: str | None) -> str | None:
    """The system message that a chat checkpoint keeps and answers with; None: its template's.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    message = getattr(read_chat_config(path), "system_message", None) if path else None
    return message if isinstance(message, str) else None


def contradictions(path: str, given: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """A sentence for each flag that was given and says otherwise than the checkpoint.

    Limits of tiling do not count where neither tiles.

    Args:
        path: of the checkpoint.
        given: flags of the command line and its file.
        kept: of :func:`kept_by`.
    """
    tiles = kept.get("dynamic_image_size") or given.get("dynamic_image_size")
    idle = () if tiles else _OF_TILING
    return [
        _told(path, flag, given[flag], value)
        for flag, value in kept.items()
        if flag in given and flag not in idle and given[flag] != value
    ]


def log_contradictions(path: str | None, given: Mapping[str, Any]) -> None:
    """Warn of :func:`contradictions` with the checkpoint that a run starts from."""
    for told in contradictions(path, given, kept_by(path)) if path else ():
        logger.warning("%s", told)


def _told(path: str, flag: str, asked: Any, kept: Any) -> str:
    consequence = _CONSEQUENCES.get(flag)
    because = f": {consequence}" if consequence else ""
    return (
        f"--{flag} {asked} goes before {path}, which was made with {kept}{because}. "
        f"Leave --{flag} out to keep {kept}."
    )
