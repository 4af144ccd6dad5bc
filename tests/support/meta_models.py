"""Models without weights, with what trains decided."""

from __future__ import annotations

from typing import Any

import torch
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights
from transformers.modeling_utils import local_torch_dtype

from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.config import LoraSettings, TrainableConfig
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel
from internvl_chat.model.presets import load_preset

NO_LORA_SETTINGS = LoraSettings(
    alpha=None,
    dropout=None,
    target_modules=(),
    use_rslora=None,
    use_dora=None,
    modules_to_save=(),
)


def what_trains(**values: Any) -> TrainableConfig:
    """Everything, but for what is given."""
    nothing: dict[str, Any] = {
        "freeze_llm": False,
        "freeze_mlp": False,
        "freeze_backbone": False,
        "unfreeze_vit_layers": 0,
        "unfreeze_lm_head": False,
        "use_llm_lora": 0,
        "use_backbone_lora": 0,
        "lora": NO_LORA_SETTINGS,
    }
    return TrainableConfig(**{**nothing, **values})


LORA = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True, "use_llm_lora": 16}


def meta_model(
    config: Any = "tiny", *, dtype: torch.dtype = torch.float32, device: str = "meta", **trains: Any
) -> InternVLChatModel:
    """A model of a preset's shape, or of a configuration's.

    Args:
        config: a preset's name, or a configuration.
        dtype: of its weights.
        device: anything but ``meta`` gives it weights.
        **trains: of :func:`what_trains`.
    """
    chosen = load_preset(config) if isinstance(config, str) else config
    trainable = what_trains(**trains)
    chosen.use_llm_lora = trainable.use_llm_lora
    chosen.use_backbone_lora = trainable.use_backbone_lora
    with (
        torch.device(device),
        meta_device_safe_creation_ops(),
        no_init_weights(),
        local_torch_dtype(dtype, "InternVLChatModel"),
    ):
        model = InternVLChatModel(chosen)
    apply_freezing_and_lora(model, trainable)
    return model
