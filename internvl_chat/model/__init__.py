"""The model, its configuration and its chat templates; these files travel inside checkpoints.

The names of ``__all__`` are imported when they are first asked for (PEP 562): templates and
suggestions need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "configuration_intern_vit": ("InternVisionConfig",),
    "configuration_internvl_chat": ("InternVLChatConfig",),
    "conversation": ("TEMPLATES", "Rendered", "Span", "Template", "get_conv_template"),
    "modeling_intern_vit": ("InternVisionModel",),
    "modeling_internvl_chat": ("InternVLChatModel",),
    "suggestions": ("close_names", "suggest"),
    "vocabulary_loss": ("VocabularyLoss",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
