"""Shapes of known models, to build one without a checkpoint (tests, plans, tiny models).

A preset is a ``config.json`` in ``presets/``, named by its file. A chat model may have the name
of another preset for its ``vision_config`` and ``llm_config``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_intern_vit import InternVisionConfig
from .configuration_internvl_chat import InternVLChatConfig
from .suggestions import suggest

_FOLDER = Path(__file__).with_name("presets")


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def _read(name: str) -> dict[str, Any]:
    path = _FOLDER / f"{name}.json"
    if name not in preset_names():
        hint = suggest(name, preset_names(), limit=3, cutoff=0.4)
        known = f"Known: {', '.join(preset_names())}"
        raise ValueError(f"no preset {name!r}. {f'{hint} {known}'.lstrip()}")
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for part in ("vision_config", "llm_config"):
        if isinstance(values.get(part), str):
            values[part] = _read(values[part])
    return values


def load_preset(name: str) -> PretrainedConfig:
    """Build the configuration of a preset.

    Args:
        name: one of :func:`preset_names`, ``"InternVL-Chat-V1-2"`` for one.

    Returns:
        An ``InternVLChatConfig``, an ``InternVisionConfig`` or a language model's configuration,
        by the preset's ``model_type``.

    Raises:
        ValueError: there is no such preset; the message offers the closest names.
    """
    values = _read(name)
    own = {config.model_type: config for config in (InternVisionConfig, InternVLChatConfig)}
    model_type = values["model_type"]
    return (own[model_type] if model_type in own else CONFIG_MAPPING[model_type])(**values)
