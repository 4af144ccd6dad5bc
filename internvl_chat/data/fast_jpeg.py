"""JPEG files decoded at a reduced size by libjpeg-turbo (simplejpeg): ``--image_backend fast``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from internvl_chat.errors import ConfigError


@functools.lru_cache(maxsize=1)
def library() -> Any:
    """simplejpeg.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import simplejpeg
    except ImportError as err:
        raise ConfigError(
            "the image backend fast needs simplejpeg, which is not installed",
            where="--image_backend",
            fix='pip install "internvl-chat[fast]", or take pillow.',
        ) from err
    return simplejpeg


def decode(
    raw: bytes, mode: str, size: tuple[int, int], least: tuple[int, int]
) -> np.ndarray | None:
    """(H, W, 3) uint8, or None for a file that is left to Pillow: CMYK, or damaged.

    Only halves, quarters and eighths are decoded: the format's other reduced sizes have no vector
    code and cost more than the whole image.

    Args:
        raw: the file.
        mode: as Pillow names it.
        size: (width, height) of the image as stored.
        least: (width, height) that the result has at least, if the image has.

    Raises:
        ConfigError: simplejpeg is not installed.
    """
    simplejpeg = library()
    if mode not in ("RGB", "L"):
        return None
    try:
        width, height = reduced_size(size, least)
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            raw, colorspace="RGB", min_width=width, min_height=height
        )
    except ValueError:  # Pillow says what is wrong with it, or reads it all the same
        return None
    return pixels


def reduced_size(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """The smallest of whole, half, quarter and eighth that is no smaller than ``least``."""
    for divisor in (8, 4, 2):
        width, height = -(-size[0] // divisor), -(-size[1] // divisor)
        if width >= least[0] and height >= least[1]:
            return width, height
    return size
