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


def decode(raw: bytes, mode: str, least: tuple[int, int]) -> np.ndarray | None:
    """(H, W, 3) uint8, or None for a file that is left to Pillow: CMYK, or damaged.

    Args:
        raw: the file.
        mode: as Pillow names it.
        least: (width, height) that the result has at least, if the image has; of the reduced
            sizes of the format (n/8) the smallest such is decoded.

    Raises:
        ConfigError: simplejpeg is not installed.
    """
    simplejpeg = library()
    if mode not in ("RGB", "L"):
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            raw, colorspace="RGB", min_width=least[0], min_height=least[1]
        )
    except ValueError:  # Pillow says what is wrong with it, or reads it all the same
        return None
    return pixels
