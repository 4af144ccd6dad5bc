"""Inference helpers: a checkpoint, an image or a video in, what ``model.chat`` takes out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from internvl_chat.chat.device_map import split_model
    from internvl_chat.chat.loading import load_model
    from internvl_chat.chat.media import load_image, load_video

__all__ = ["load_image", "load_model", "load_video", "split_model"]

_HOMES: Final = {
    "load_image": "media",
    "load_model": "loading",
    "load_video": "media",
    "split_model": "device_map",
}


def __getattr__(name: str) -> Any:
    """The functions of ``__all__``, imported when they are first asked for (PEP 562).

    They need torch; what is wrong with a file of questions or of answers is told without.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
