"""What the page says of a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from internvl_chat.web.facts import facts_of, shortened


def model_of(*devices: str, **more: Any) -> Any:
    """Something that looks like a loaded model of 40 billion parameters."""
    parameters = [SimpleNamespace(device=torch.device(device)) for device in devices]
    return SimpleNamespace(
        num_parameters=lambda: 40_100_000_000,
        parameters=lambda: iter(parameters),
        dtype=torch.bfloat16,
        config=SimpleNamespace(image_size=448),
        **more,
    )


def test_size_numbers_device_and_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    rest = ("images of 448 pixels",)
    size = ("40.1 B parameters",)
    assert facts_of(model_of("cpu")) == (*size, "bfloat16", "CPU", *rest)
    assert facts_of(model_of("cuda:0", "cuda:0")) == (*size, "bfloat16", "NVIDIA H100", *rest)
    spread = model_of("cuda:0", "cuda:1", "meta", is_loaded_in_8bit=True)
    assert facts_of(spread) == (*size, "int8", "2 × NVIDIA H100 + offloaded", *rest)
    assert facts_of(model_of("cpu", is_loaded_in_4bit=True))[1] == "4 bits"


def test_counts_are_shortened() -> None:
    counts = (940, 19_200, 5_526_720, 999_960_000, 2_000_000_000, 193_000_000_000)
    assert [shortened(count) for count in counts] == [
        *("940", "19.2 K", "5.5 M", "1000 M", "2.0 B", "193 B")
    ]
