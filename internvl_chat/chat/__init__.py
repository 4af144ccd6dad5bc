"""Inference helpers: a checkpoint, an image or a video in, what ``model.chat`` takes out."""

from __future__ import annotations

from internvl_chat.chat.device_map import split_model
from internvl_chat.chat.loading import load_model
from internvl_chat.chat.media import load_image, load_video

__all__ = ["load_image", "load_model", "load_video", "split_model"]
