"""What Pillow does not take from PNG files as it stands there: long texts, shallow transparency."""

from __future__ import annotations

from typing import Final

from PIL import Image

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TEXTS: Final = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks that Pillow refuses beyond a length; a colour profile is not applied anyway."""
_GREY, _RGB = 0, 2  # colour types


def without_text(raw: bytes) -> bytes:
    """A PNG without its text and colour profile; other files as they are."""
    if not raw.startswith(_SIGNATURE):
        return raw
    kept, place = [_SIGNATURE], len(_SIGNATURE)
    while place + 8 <= len(raw):
        end = place + 12 + int.from_bytes(raw[place : place + 4], "big")
        if raw[place + 4 : place + 8] not in _TEXTS:
            kept.append(raw[place:end])
        place = end
    return b"".join(kept)


def with_scaled_transparency(image: Image.Image, raw: bytes) -> None:
    """Put the transparent colour of a PNG on the scale of the pixels that Pillow makes of it.

    Pillow widens greys of 1, 2 and 4 bits and narrows colours of 16, but not that value.

    Args:
        image: opened from ``raw``; its ``info`` is corrected.
        raw: the file.
    """
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or len(raw) < 26:
        return
    depth, colour_type = raw[24], raw[25]
    if colour_type == _GREY and depth < 8 and isinstance(value, int):
        image.info["transparency"] = value * 255 // (2**depth - 1)
    elif colour_type == _RGB and depth == 16 and isinstance(value, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in value)
