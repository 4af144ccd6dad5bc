"""Boxes in text: 0-1 floats or pixels <-> ``<box>[[x1, y1, x2, y2]]</box>`` in 0-1000.

Pure. Only a bracketed group of exactly four numbers in range counts as a box; several boxes are
merged only where they already stood in one list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from internvl_chat.model.constants import BOX_END_TOKEN, BOX_START_TOKEN

_NUMBER: Final = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_FOUR: Final = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
_LIST: Final = re.compile(
    rf"(?P<tagged>{re.escape(BOX_START_TOKEN)}.*?{re.escape(BOX_END_TOKEN)})"
    rf"|(?P<boxes>\[\s*{_FOUR}(?:\s*,\s*{_FOUR})*\s*\]|{_FOUR})(?!\[)",
    re.DOTALL,
)
# \left[…], ][…] and v2[…] are intervals and subscripts.
_NO_BOX_AFTER: Final = re.compile(r"(?:\\[A-Za-z]*|[0-9_\[\]])\Z")
_GROUP: Final = re.compile(_FOUR)
_VALUE: Final = re.compile(_NUMBER)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Converted:
    """Text after conversion."""

    text: str
    num_boxes: int = 0
    problems: tuple[str, ...] = field(default=())
    """Boxes whose corners are out of order after conversion."""


def unit_to_1000(text: str, *, pad_size: tuple[float, float] | None = None) -> Converted:
    """Rewrite boxes of floats in 0-1 as ``<box>[[…]]</box>`` of integers in 0-1000.

    A group needs at least one decimal point: ``[0, 1, 1, 0]`` is a list of bits.

    Args:
        text: any text; ``<box>`` elements in it stay as they are.
        pad_size: (width, height) of an image that will be padded to a square, to which the boxes
            are then remapped.
    """

    def scale(box: Box) -> Box | None:
        return box if all(0 <= v <= 1 for v in box) else None

    return _rewrite(text, scale, needs_point=True, pad_size=pad_size)


def pixel_to_1000(
    text: str, size: tuple[float, float], *, pad_size: tuple[float, float] | None = None
) -> Converted:
    """Rewrite boxes of pixels as ``<box>[[…]]</box>``.

    Args:
        text: any text; ``<box>`` elements in it stay as they are.
        size: (width, height) of the image the pixels refer to; numbers beyond it are no box.
        pad_size: as in :func:`unit_to_1000`.
    """
    width, height = size

    def scale(box: Box) -> Box | None:
        x1, y1, x2, y2 = box
        if not all(0 <= x <= width for x in (x1, x2)):
            return None
        if not all(0 <= y <= height for y in (y1, y2)):
            return None
        return x1 / width, y1 / height, x2 / width, y2 / height

    return _rewrite(text, scale, needs_point=False, pad_size=pad_size)


def thousand_to_unit(text: str) -> Converted:
    """Rewrite ``<box>[[x1, y1, x2, y2], …]</box>`` as bare boxes of floats with three decimals."""
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if match["tagged"] is None:
            return match[0]
        groups = _GROUP.findall(match["tagged"])
        boxes = [_values(group) for group in groups]
        if not boxes or not all(0 <= v <= 1000 for box in boxes for v in box):
            return match[0]
        count += len(boxes)
        shown = ["[" + ", ".join(f"{v / 1000:.3f}" for v in box) + "]" for box in boxes]
        return shown[0] if len(shown) == 1 else "[" + ", ".join(shown) + "]"

    return Converted(_LIST.sub(replace, text), count)


def pad_to_square(box: Box, size: tuple[float, float]) -> Box:
    """Where a box in 0-1 lies after its image (width, height) was padded centred to a square."""
    width, height = size
    side = max(width, height)
    # Whole pixels, as images.pad_square pastes.
    left, top = (side - width) // 2, (side - height) // 2
    x1, y1, x2, y2 = box
    return (
        (x1 * width + left) / side,
        (y1 * height + top) / side,
        (x2 * width + left) / side,
        (y2 * height + top) / side,
    )


def _values(group: str) -> Box:
    x1, y1, x2, y2 = (float(v) for v in _VALUE.findall(group))
    return x1, y1, x2, y2


def _rewrite(
    text: str,
    scale: Callable[[Box], Box | None],
    *,
    needs_point: bool,
    pad_size: tuple[float, float] | None,
) -> Converted:
    if "[" not in text:
        return Converted(text)
    count = 0
    problems: list[str] = []

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        groups = _GROUP.findall(match["boxes"] or "")
        if _NO_BOX_AFTER.search(text, max(match.start() - 16, 0), match.start()):
            return match[0]
        if not groups or (needs_point and any("." not in group for group in groups)):
            return match[0]
        scaled = [scale(_values(group)) for group in groups]
        written: list[str] = []
        for box in scaled:
            if box is None:
                return match[0]
            if pad_size is not None:
                box = pad_to_square(box, pad_size)
            x1, y1, x2, y2 = (min(max(round(1000 * v), 0), 1000) for v in box)
            written.append(f"[{x1}, {y1}, {x2}, {y2}]")
            if x1 >= x2 or y1 >= y2:
                problems.append(f"box {match[0]} becomes {written[-1]}: want x1 < x2 and y1 < y2")
        count += len(written)
        return f"{BOX_START_TOKEN}[{', '.join(written)}]{BOX_END_TOKEN}"

    return Converted(_LIST.sub(replace, text), count, tuple(problems))
