"""Which part of the model lies on which GPU."""

from __future__ import annotations

import math
from typing import Any

from internvl_chat.errors import ConfigError


def split_model(config: Any, world_size: int, *, vit_share: float = 0.5) -> dict[str, int]:
    """Spread the language model's blocks over GPUs; the vision tower keeps a part of the first.

    The guide's ``split_model`` (section Multiple GPUs) for any number of layers. What meets the
    tokens first and last (embeddings, projector, the last block, norm and head) lies on GPU 0, so
    that no tensor has to be moved by hand.

    Args:
        config: the chat model's configuration.
        world_size: number of GPUs.
        vit_share: how much of GPU 0 the vision tower counts as, from 0 to below 1; 0.5 is the
            guide's figure for InternViT-6B beside Yi-34B.

    Returns:
        Module name to GPU, for ``from_pretrained(device_map=...)``.

    Raises:
        ConfigError: no GPU, or a share outside [0, 1).
    """
    if world_size < 1:
        raise ConfigError(
            f"world_size is {world_size}, want at least 1",
            where="split_model",
            fix="On a machine without GPUs load with device='cpu'.",
        )
    if not 0 <= vit_share < 1:
        raise ConfigError(f"vit_share is {vit_share}, want 0 <= vit_share < 1", where="split_model")
    num_layers = config.llm_config.num_hidden_layers
    per_gpu = math.ceil(num_layers / (world_size - vit_share))
    on_first = math.ceil(per_gpu * (1 - vit_share))
    device_map = {
        f"language_model.model.layers.{layer}": 0
        if layer < on_first
        else min(world_size - 1, 1 + (layer - on_first) // per_gpu)
        for layer in range(num_layers)
    }
    device_map[f"language_model.model.layers.{num_layers - 1}"] = 0
    # Rotary positions have no weights, but transformers 5 wants a place for every module.
    whole = ("embed_tokens", "norm", "rotary_emb")
    device_map |= dict.fromkeys((f"language_model.model.{name}" for name in whole), 0)
    return device_map | {"vision_model": 0, "mlp1": 0, "language_model.lm_head": 0}
