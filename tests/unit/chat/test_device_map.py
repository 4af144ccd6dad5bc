"""Where the parts go: as the guide's function has it, and a place for everything."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat import InternVLChatConfig, InternVLChatModel
from internvl_chat.chat import split_model
from internvl_chat.errors import ConfigError
from internvl_chat.model.presets import load_preset

GUIDE = Path(__file__).parents[2] / "guide/samples/split_over_gpus.py"


def preset(name: str) -> InternVLChatConfig:
    config = load_preset(name)
    assert isinstance(config, InternVLChatConfig)
    return config


def guides_split_model() -> Any:
    """The function alone out of the guide's sample."""
    tree = ast.parse(GUIDE.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names: dict[str, Any] = {"math": math, "torch": torch}
    exec(compile(tree, "guide", "exec"), names)
    return names["split_model"]


@pytest.mark.parametrize("world_size", range(1, 9))
def test_the_same_places_as_in_the_guide(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: world_size)
    wanted = guides_split_model()("InternVL-Chat-V1-2-Plus")
    ours = split_model(preset("InternVL-Chat-V1-2"), world_size)
    shared = set(ours) & set(wanted)
    assert len(shared) == 60 + 5  # all blocks, tower, projector, embeddings, norm and head
    assert {name: ours[name] for name in shared} == {name: wanted[name] for name in shared}


@pytest.mark.parametrize("name", ["tiny", "InternVL-Chat-V1-2"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 100])
def test_every_weight_has_one_place_that_exists(name: str, world_size: int) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = InternVLChatModel(config)
    device_map = split_model(config, world_size)
    assert set(device_map.values()) <= set(range(world_size))
    tensors = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    for tensor in tensors:
        holders = [part for part in device_map if tensor.startswith(f"{part}.")]
        assert len(holders) == 1, tensor
    modules = {name for name, _ in model.named_modules()}
    assert set(device_map) <= modules


def test_the_towers_share_leaves_the_first_gpu_fewer_blocks() -> None:
    config = preset("InternVL-Chat-V1-2")

    def on_first(share: float) -> int:
        device_map = split_model(config, 4, vit_share=share)
        blocks = [name for name, place in device_map.items() if ".layers." in name and place == 0]
        return len(blocks)

    counts = [on_first(share) for share in (0.0, 0.3, 0.5, 0.9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 15 + 1  # a quarter of 60, and the last block
    assert counts[-1] < 5


@pytest.mark.parametrize(("world_size", "share"), [(0, 0.5), (2, 1.0), (2, -0.1)])
def test_wrong_use_is_told(world_size: int, share: float) -> None:
    with pytest.raises(ConfigError, match="split_model"):
        split_model(preset("tiny"), world_size, vit_share=share)
