"""The model of a run that is only planned: its shape from configurations, no weight looked at.

A model may be a directory with its ``config.json``, one on the hub, the name of a preset
(``InternVL-Chat-V1-2``), or a path that is not there and ends in the name of a published model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.hub_names import hub_name, last_part
from internvl_chat.checkpoint.load import settle_config
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.checkpoint.skeleton import model_without_weights
from internvl_chat.checkpoint.sources import (
    Sources,
    find_sources,
    llm_config_of,
    read_chat_config,
    refuse_quantised,
    vision_config_of,
)
from internvl_chat.checkpoint.two_dtypes import leave_casting_to_autocast, round_frozen
from internvl_chat.config import BuildConfig, SourceConfig
from internvl_chat.files import write_json
from internvl_chat.model.adapter import is_adapter
from internvl_chat.model.presets import load_preset, preset_names
from internvl_chat.train.parsing import peek

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

_MODEL_FLAGS: Final = ("model_name_or_path", "vision_path", "llm_path")
_SAME_SHAPE: Final = {
    "InternVL-Chat-V1-2-Plus": "InternVL-Chat-V1-2",
    "InternVL-Chat-Chinese-V1-2": "InternVL-Chat-V1-2",
    "InternVL-Chat-Chinese-V1-2-Plus": "InternVL-Chat-V1-2",
    "Nous-Hermes-2-Yi-34B": "Yi-34B",
}
"""Published models -> the preset that has their shape."""


@dataclass(frozen=True)
class PlannedPlaces:
    """Where the configurations lie."""

    directories: dict[str, str]
    """Flag -> directory, for those that are not where the flag says."""
    notes: tuple[str, ...]
    """What was taken for what, for the report."""


@contextmanager
def planned_places(arguments: Sequence[str]) -> Iterator[PlannedPlaces]:
    """Find the configurations that the arguments name; presets are written out for the while.

    Args:
        arguments: of the command line.

    Raises:
        CheckpointError: a model on the hub is not to be had.
    """
    found: dict[str, str] = {}
    notes = []
    with TemporaryDirectory(prefix="internvl-chat-plan-") as folder:
        for flag in _MODEL_FLAGS:
            name = peek(arguments, flag, "")
            if not name or Path(name).exists():
                continue
            preset = _preset_of(name)
            if preset is not None:
                place = Path(folder) / flag / last_part(name)
                place.mkdir(parents=True)
                write_json(place / "config.json", load_preset(preset).to_dict())
                found[flag] = str(place)
                why = "" if name == preset else f"{name} is not there: "
                notes.append(f"{why}the model's shape is preset {preset}'s")
            elif hub_name(name) is not None:
                found[flag] = local_model(name, "settings")
        yield PlannedPlaces(found, tuple(notes))


def _preset_of(name: str) -> str | None:
    last = last_part(name)
    known = _SAME_SHAPE.get(last, last)
    return known if known in preset_names() else None


def model_on_meta(build: BuildConfig, found: Sources, *, num_tokens: int) -> InternVLChatModel:
    """The model that a run would train, on the meta device, with what trains decided.

    Args:
        build: what the run would build.
        found: of :func:`planned_sources`; left as they are.
        num_tokens: rows that the tokenizer's ids need; 0 where nobody knows it.

    Raises:
        CheckpointError, ConfigError: what is asked for does not fit the model.
    """
    sources = replace(found, config=copy.deepcopy(found.config))
    settle_config(build, sources, num_tokens=num_tokens)
    model = model_without_weights(sources.config, sources.where, dtype=build.dtype)
    stored = (*sources.adapter_modules, *build.trainable.lora.modules_to_save)
    model.adapter_modules = tuple(dict.fromkeys(stored))
    apply_freezing_and_lora(model, build.trainable)
    round_frozen(model, build.frozen_dtype)
    if build.frozen_dtype != build.dtype and not build.load_in_4bit:
        leave_casting_to_autocast(model)
    return model


def planned_sources(source: SourceConfig) -> Sources:
    """Configurations; weights are listed for an adapter alone, whose settings they are part of.

    Raises:
        CheckpointError: a configuration is missing or wrong, or the weights are quantised.
    """
    sources = _sources(source)
    refuse_quantised(sources.config, sources.where)
    return sources


def _sources(source: SourceConfig) -> Sources:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

    path = source.model_name_or_path
    if path and is_adapter(Path(path)):
        return find_sources(source)
    if path:
        return Sources(where=path, config=read_chat_config(path), tensors={})
    parts: dict[str, Any] = {
        "vision_config": vision_config_of(Path(source.vision_path or "")),
        "llm_config": llm_config_of(Path(source.llm_path or "")),
    }
    where = f"{source.vision_path} + {source.llm_path}"
    return Sources(where=where, config=InternVLChatConfig(**parts), tensors={})
