"""EXIF orientation: a image, its size and the boxes on it turned as viewers turn it. Pure.

A record may be written about the image as stored or as shown. With the orientations 5 to 8, which
swap the sides, its ``width`` and ``height`` tell which; the others keep the size, so that nothing
can tell, and what people see counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from PIL import Image

from internvl_chat.data.schema import BadRecordError, Size
from internvl_chat.model.constants import BOX_END_TOKEN, BOX_START_TOKEN

UPRIGHT: Final = 1
_METHODS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING: Final = (5, 6, 7, 8)
_NUMBER: Final = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_FOUR: Final = re.compile(rf"\[(\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*)\]")
_BOXES: Final = re.compile(
    rf"{re.escape(BOX_START_TOKEN)}.*?{re.escape(BOX_END_TOKEN)}|(?<![\w\\\]]){_FOUR.pattern}",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class ImageGeometry:
    """The size of an image file and how it is turned to be shown."""

    stored_size: tuple[int, int]
    """(width, height) as stored."""
    orientation: int = UPRIGHT
    """EXIF's, 1 to 8; 1 also where the rule of the checkpoint ignores it."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as shown."""
        return turned_size(self.stored_size, self.orientation)

    def is_stored_size(self, stated: Size | None) -> bool:
        """Whether a record that states this size is about the stored, unturned image."""
        return (
            stated is not None
            and self.orientation in _SWAPPING
            and self.stored_size != self.size
            and tuple(stated) == self.stored_size
        )


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image as shown; the very image where there is nothing to turn."""
    method = _METHODS.get(orientation)
    return image if method is None else image.transpose(method)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) after turning."""
    return (size[1], size[0]) if orientation in _SWAPPING else size


def sizes_as_shown(
    stated: Sequence[Size] | None, geometries: Sequence[ImageGeometry]
) -> tuple[Size, ...]:
    """A record's sizes where it states them, those of stored images turned; else the files'."""
    if stated is None:
        return tuple(place.size for place in geometries)
    return tuple(
        place.size if place.is_stored_size(size) else size
        for size, place in zip(stated, geometries, strict=True)
    )


def turn_boxes(
    turns: Sequence[tuple[str, str]],
    stated: Sequence[Size] | None,
    geometries: Sequence[ImageGeometry],
    *,
    where: str,
) -> tuple[tuple[str, str], ...]:
    """Turn boxes that were written about stored images, whose record states their size.

    Boxes are the ``<box>`` elements in 0-1000 and bare groups of floats in 0-1; pixels have been
    converted before. Corners are sorted anew, decimals kept.

    Args:
        turns: (question, answer) pairs.
        stated: (width, height) per image by the record.
        geometries: of each image.
        where: ``file:line``, for messages.

    Raises:
        BadRecordError: there are boxes, and images that are turned differently.
    """
    if stated is None or len(stated) != len(geometries):
        return tuple(turns)
    needed = {
        place.orientation if place.is_stored_size(size) else UPRIGHT
        for size, place in zip(stated, geometries, strict=True)
    }
    if needed <= {UPRIGHT}:
        return tuple(turns)

    def turn(text: str) -> str:
        changed = _turned_text(text, min(needed - {UPRIGHT}))
        if changed != text and len(needed) > 1:
            raise BadRecordError(
                "BOX",
                "boxes of a record with images that EXIF orientation turns differently: nothing "
                "says which image a box refers to",
                where=where,
                fix="Turn the files themselves, or split the record.",
            )
        return changed

    return tuple((turn(question), turn(answer)) for question, answer in turns)


def _turned_text(text: str, orientation: int) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[0].startswith(BOX_START_TOKEN):
            return _FOUR.sub(
                lambda group: _turned_group(group, orientation, Decimal(1000)), match[0]
            )
        if "." not in match[0]:
            return match[0]  # a list of whole numbers
        return _FOUR.sub(lambda group: _turned_group(group, orientation, Decimal(1)), match[0])

    return _BOXES.sub(replace, text) if "[" in text else text


def _turned_group(group: re.Match[str], orientation: int, whole: Decimal) -> str:
    values = [Decimal(number) for number in re.findall(_NUMBER, group[1])]
    if not all(0 <= value <= whole for value in values):
        return group[0]
    turn = _POINTS[orientation]
    (xa, ya), (xb, yb) = turn(values[0], values[1], whole), turn(values[2], values[3], whole)
    corners = (min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb))
    return f"[{', '.join(map(str, corners))}]"


_Point = tuple[Decimal, Decimal]
_POINTS: Final[dict[int, Callable[[Decimal, Decimal, Decimal], _Point]]] = {
    2: lambda x, y, whole: (whole - x, y),
    3: lambda x, y, whole: (whole - x, whole - y),
    4: lambda x, y, whole: (x, whole - y),
    5: lambda x, y, whole: (y, x),
    6: lambda x, y, whole: (whole - y, x),
    7: lambda x, y, whole: (whole - y, whole - x),
    8: lambda x, y, whole: (y, whole - x),
}
"""Where a point of the stored image is shown."""
