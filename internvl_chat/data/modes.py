"""Pillow's modes -> RGB: transparency, and greys of more than 8 bits."""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

DEEP_GREYS: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Modes that Pillow would clip to 255."""


def on_ground(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """RGB of a decoded image with transparency, on a ground of one colour."""
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, colour)
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def deep_grey_to_rgb(image: Image.Image, colour: tuple[int, int, int] | None) -> Image.Image:
    """RGB of decoded greys of more than 8 bits.

    16 bits are scaled by their range, as viewers do, floats up to 1 from 0-1; others by their
    largest value. What is no number is black.

    Args:
        image: of a mode in DEEP_GREYS.
        colour: of the ground that shows through a transparent level; None: the level itself.
    """
    values = np.asarray(image).astype(np.float32)
    values[~np.isfinite(values)] = 0
    top = float(values.max(initial=0))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        scaled = values * (255.0 / 65535.0)
    elif top > 255:
        scaled = values * (255.0 / 65535.0 if top <= 65535 else 255.0 / top)
    elif image.mode == "F" and top <= 1:
        scaled = values * 255.0
    else:
        scaled = values
    rgb = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    through = image.info.get("transparency")
    if colour is None or not isinstance(through, int):
        return rgb
    mask = Image.fromarray(np.where(values == through, 255, 0).astype(np.uint8))
    rgb.paste(colour, mask=mask)
    return rgb
