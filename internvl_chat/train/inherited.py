"""What a run takes from the chat checkpoint it starts from, unless it is told otherwise.

Image size, tiling, template and pixel shuffle belong to the weights: a checkpoint keeps them, and a
run that continues it goes on as it was made. A flag that is given goes first, and where it
contradicts the checkpoint the run says so before it loads anything. A model made of parts has no
such file: there the flags' defaults count.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.artifacts import normalize_type_of
from internvl_chat.checkpoint.hub_names import portable_name
from internvl_chat.checkpoint.sources import find_sources, rank_in, read_chat_config
from internvl_chat.config import SourceConfig
from internvl_chat.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

_OF_CONFIG: Final[dict[str, tuple[str, type]]] = {
    "conv_style": ("template", str),
    "force_image_size": ("image_size", int),
    "down_sample_ratio": ("downsample_ratio", float),
    "vision_select_layer": ("select_layer", int),
    "ps_version": ("ps_version", str),
    "pad2square": ("pad2square", bool),
    "dynamic_image_size": ("dynamic_image_size", bool),
    "use_thumbnail": ("use_thumbnail", bool),
    "min_dynamic_patch": ("min_dynamic_patch", int),
    "max_dynamic_patch": ("max_dynamic_patch", int),
}
"""Flag -> attribute of the checkpoint's configuration, and its kind."""
_KINDS: Final = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
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
        found = _values(path)
        kept = {flag: value for flag, value in found.items() if _fits(flag, value)}
        kept["normalize_type"] = normalize_type_of(Path(path))
    except CheckpointError:
        return {}
    for flag, (_, kind) in _OF_CONFIG.items():
        if kind is bool and flag in kept:
            kept[flag] = bool(kept[flag])  # 0 and 1, as some write them
    return kept


def carried_ranks(path: str | None) -> tuple[int, int]:
    """Ranks of the adapters on LLM and vision tower that a chat checkpoint has; 0 for none.

    What is wrong with its files is told by those who load it.
    """
    if not path:
        return 0, 0
    try:
        sources = find_sources(SourceConfig.whole(path))
    except (CheckpointError, ConfigError):
        return 0, 0
    return rank_in(sources, names.LLM_PREFIX), rank_in(sources, names.VISION_PREFIX)


def kept_problems(path: str | None, given: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each value of the checkpoint that is of the wrong kind, and counts."""
    try:
        found = _values(path) if path else {}
    except CheckpointError:
        return  # told by those who load it
    for flag, value in found.items():
        if value is not None and flag not in given and not _fits(flag, value):
            name, kind = _OF_CONFIG[flag]
            name = flag if name == "image_size" else name  # by the vision tower, where not forced
            yield f'{path}: "{name}" of its configuration is {value!r}, want {_KINDS[kind]}.'


def explained(
    problems: Iterable[str], path: str | None, given: Mapping[str, Any], kept: Mapping[str, Any]
) -> list[str]:
    """Problems with the values of flags, those that nobody gave with where they come from.

    Args:
        problems: sentences that name flags.
        path, given, kept: as of :func:`contradictions`.
    """
    not_given = [flag for flag in kept if flag not in given]

    def one(problem: str) -> str:
        named = [flag for flag in not_given if re.search(rf"--{flag}\b", problem.partition(".")[0])]
        if not named:
            return problem
        return f"{problem.rstrip('.')}. That is what {path} keeps: give another --{named[0]}."

    return [one(problem) for problem in problems]


def _values(path: str) -> dict[str, Any]:
    config = read_chat_config(path)
    found = {flag: getattr(config, name) for flag, (name, _) in _OF_CONFIG.items()}
    found["conv_style"] = found["conv_style"] or None  # then the model goes by its default, too
    return found


def _fits(flag: str, value: object) -> bool:
    kind = _OF_CONFIG[flag][1]
    if kind is bool:
        return value in (True, False)
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


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
        f"--{flag} {asked} goes before {portable_name(path)}, which was made with {kept}{because}. "
        f"Leave --{flag} out to keep {kept}."
    )
