"""The model, its configuration and its chat templates; these files travel inside checkpoints."""

from __future__ import annotations

from .configuration_intern_vit import InternVisionConfig
from .configuration_internvl_chat import InternVLChatConfig
from .conversation import TEMPLATES, Rendered, Span, Template, get_conv_template
from .modeling_intern_vit import InternVisionModel
from .modeling_internvl_chat import InternVLChatModel
from .suggestions import close_names, suggest
from .vocabulary_loss import VocabularyLoss

__all__ = [
    "TEMPLATES",
    "InternVLChatConfig",
    "InternVLChatModel",
    "InternVisionConfig",
    "InternVisionModel",
    "Rendered",
    "Span",
    "Template",
    "VocabularyLoss",
    "close_names",
    "get_conv_template",
    "suggest",
]
