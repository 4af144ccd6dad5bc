"""What a model is to be built from, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from internvl_chat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Sources, shape and trained parts of a chat model; the names are those of the arguments."""

    model_name_or_path: str | None = None
    """A chat checkpoint: whole, with LoRA weights inside, or adapter-only."""
    vision_path: str | None = None
    """An InternViT checkpoint, or a chat checkpoint whose vision tower is taken."""
    llm_path: str | None = None
    """A causal LLM's checkpoint, or a chat checkpoint whose LLM is taken."""
    mlp_path: str | None = None
    """A projector file; ``None`` with ``llm_path`` starts from random numbers."""

    dtype: torch.dtype = torch.bfloat16
    attn_implementation: str | dict[str, str] | None = None
    """A name that transformers' attention interface knows, or one for each sub-configuration;
    ``None`` leaves it the choice."""
    seed: int = 0
    """Of newly made weights (projector, LoRA): the same at every number of ranks."""

    vision_select_layer: int = -1
    drop_path_rate: float = 0.0
    ps_version: Literal["v1", "v2"] = "v1"
    template: str = "Hermes-2"
    force_image_size: int = 448
    down_sample_ratio: float = 0.5
    pad2square: bool = False
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 1

    freeze_llm: bool = False
    freeze_mlp: bool = False
    freeze_backbone: bool = False
    unfreeze_vit_layers: int = 0
    unfreeze_lm_head: bool = False
    use_llm_lora: int = 0
    """Rank of the LLM's adapter; 0 for none. Alpha is twice the rank, dropout 0.05."""
    use_backbone_lora: int = 0
    """Rank of the vision tower's adapter; 0 for none."""

    def __post_init__(self) -> None:
        whole, parts = self.model_name_or_path, (self.vision_path, self.llm_path)
        if whole is not None and any((*parts, self.mlp_path)):
            raise ConfigError(
                "a whole checkpoint and parts of one were given",
                where="--model_name_or_path",
                fix="Drop it, or drop --vision_path, --mlp_path and --llm_path.",
            )
        if whole is None and not all(parts):
            raise ConfigError(
                "nothing to build the model from",
                where="--model_name_or_path",
                fix="Give it, or both --vision_path and --llm_path.",
            )

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer's files are."""
        path = self.model_name_or_path or self.llm_path
        assert path is not None  # __post_init__
        return path
