"""Supervised fine-tuning, chat and evaluation for the InternVL-Chat-V1.2 family.

Importing the package registers its model with transformers' Auto classes, so that
``AutoModel.from_pretrained`` loads InternVL-Chat checkpoints without ``trust_remote_code``. This
takes effect when they are first imported: importing the package loads neither torch nor
transformers, and what needs no model answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from internvl_chat import model
from internvl_chat.model.auto_classes import register_when_imported

if TYPE_CHECKING:
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

register_when_imported()


def __getattr__(name: str) -> Any:
    """The classes of ``__all__``, imported when they are first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(model, name)
