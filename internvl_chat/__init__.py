"""Supervised fine-tuning, chat and evaluation for the InternVL-Chat-V1.2 family.

Importing the package registers its model with transformers' Auto classes, so that
``AutoModel.from_pretrained`` loads InternVL-Chat checkpoints without ``trust_remote_code``.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from internvl_chat.model import (
    InternVisionConfig,
    InternVisionModel,
    InternVLChatConfig,
    InternVLChatModel,
)

__version__ = "0.1.0"

__all__ = [
    "InternVLChatConfig",
    "InternVLChatModel",
    "InternVisionConfig",
    "InternVisionModel",
    "__version__",
]

for _config, _model in (
    (InternVisionConfig, InternVisionModel),
    (InternVLChatConfig, InternVLChatModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
AutoModelForCausalLM.register(InternVLChatConfig, InternVLChatModel, exist_ok=True)
