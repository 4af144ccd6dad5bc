"""A loaded model in a few words: how large, in what numbers, where, what it sees."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch


def facts_of(model: Any) -> tuple[str, ...]:
    """``("5.5 M parameters", "float32", "CPU", "images of 112 pixels")``.

    Args:
        model: loaded for inference; quantised or spread over devices as ``load_model`` does it.
    """
    # transformers' count: packed 4-bit weights for what they stand for
    return (
        f"{shortened(model.num_parameters())} parameters",
        _numbers(model),
        " + ".join(_devices(model)),
        f"images of {model.config.image_size} pixels",
    )


def shortened(count: int) -> str:
    """A count in three digits or so.

    >>> shortened(5_526_720), shortened(40_100_000_000), shortened(940)
    ('5.5 M', '40.1 B', '940')
    """
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            value = count / size
            return f"{value:.0f} {letter}" if value >= 100 else f"{value:.1f} {letter}"
    return str(count)


def _numbers(model: Any) -> str:
    if getattr(model, "is_loaded_in_8bit", False):
        return "int8"
    if getattr(model, "is_loaded_in_4bit", False):
        return "4 bits"
    return str(model.dtype).removeprefix("torch.")


def _devices(model: Any) -> list[str]:
    places = {parameter.device for parameter in model.parameters()}
    # meta: weights that accelerate fetches from main memory or disk when their layer is run
    names = Counter(_name(place) for place in sorted(places, key=str))
    return [f"{count} × {name}" if count > 1 else name for name, count in names.items()]


def _name(place: torch.device) -> str:
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return {"cpu": "CPU", "meta": "offloaded"}.get(place.type, str(place))
