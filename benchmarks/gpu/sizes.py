"""Shapes of the models that are measured, and what each is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PRESET = "InternVL-Chat-V1-2"


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The published model with some numbers changed."""

    summary: str
    vision: Mapping[str, Any] = field(default_factory=dict)
    llm: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 448
    lora_rank: int = 0
    """Above 0 the LLM gets LoRA and everything else is frozen, as in the guide's LoRA recipe."""
    pack_tokens: int = 4096
    packs_per_step: int = 2
    grouped_per_step: int = 8
    grouped_micro_batch: int = 8
    answer_tokens: int = 260
    """Median of the log-normal length of an answer."""
    max_seq_length: int = 2048


SIZES: dict[str, ModelSize] = {
    "mid": ModelSize(
        summary="published ViT widths, LLM 4096 wide; 8 + 10 blocks, 3.35 B, all of it trained",
        vision={"num_hidden_layers": 8},
        llm={
            "num_hidden_layers": 10,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "lora30": ModelSize(
        summary="published widths, 45 ViT and 30 LLM blocks, 23 B, LoRA of rank 16: for 80 GB",
        llm={"num_hidden_layers": 30},
        lora_rank=16,
        grouped_per_step=16,
        grouped_micro_batch=4,
    ),
    "published": ModelSize(
        summary="the published 40 B, LoRA of rank 16: needs 141 GB",
        lora_rank=16,
        grouped_per_step=16,
        grouped_micro_batch=4,
    ),
    "tiny": ModelSize(
        summary="a toy that runs on a CPU, to try the benchmark itself",
        vision={
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 2,
        },
        llm={
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1000,
        },
        image_size=56,
        pack_tokens=256,
        grouped_per_step=4,
        grouped_micro_batch=2,
        answer_tokens=24,
        max_seq_length=256,
    ),
}
SIZES["tiny-lora"] = replace(
    SIZES["tiny"], summary="the toy with LoRA of rank 4, the rest frozen", lora_rank=4
)


def config_of(size: ModelSize) -> Any:
    """The ``InternVLChatConfig`` of a size."""
    from internvl_chat.model.presets import load_preset

    config: Any = load_preset(PRESET)
    for part, changes in ((config.vision_config, size.vision), (config.llm_config, size.llm)):
        for name, value in changes.items():
            setattr(part, name, value)
    llm = config.llm_config
    llm.head_dim = llm.hidden_size // llm.num_attention_heads
    config.vision_config.image_size = config.force_image_size = size.image_size
    return config


def listed() -> str:
    """All sizes with what they are, for a help text."""
    return "; ".join(f"{name}: {size.summary}" for name, size in SIZES.items())
