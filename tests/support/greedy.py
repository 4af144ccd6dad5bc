"""Greedy answers to prompts with an image of noise each.

Imports torch alone: tests copy this file to where neither this package nor these tests are.
"""

from __future__ import annotations

from typing import Any

import torch


def tokens(model: Any, probe: dict[str, Any]) -> list[list[int]]:
    """Greedy tokens after each prompt."""
    model.img_context_token_id = probe["image_token_id"]
    size = model.config.image_size
    found = []
    for ids, seed in zip(probe["prompts"], probe["seeds"], strict=True):
        pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
        output = model.generate(
            pixels,
            torch.tensor([ids]),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=probe["stop"],
            pad_token_id=0,
        )
        found.append(output[0].tolist())
    return found
