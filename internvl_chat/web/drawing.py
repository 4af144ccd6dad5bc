"""Boxes of an answer on their image."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from internvl_chat.data.boxes import Box, thousand_to_unit
from internvl_chat.model.constants import (
    BOX_END_TOKEN,
    BOX_START_TOKEN,
    REF_END_TOKEN,
    REF_START_TOKEN,
)

_ELEMENT: Final = re.compile(
    rf"(?:{re.escape(REF_START_TOKEN)}(?P<label>[^<]*){re.escape(REF_END_TOKEN)}\s*)?"
    rf"(?P<boxes>{re.escape(BOX_START_TOKEN)}[^<]*{re.escape(BOX_END_TOKEN)})"
)
COLOURS: Final = (
    (255, 59, 48),
    (0, 122, 255),
    (52, 199, 89),
    (255, 149, 0),
    (175, 82, 222),
    (0, 199, 190),
    (255, 45, 146),
    (162, 132, 94),
)
"""R, G, B of the first, second, ... box; then from the start again."""
SMALLEST_SIDE: Final = 512
LARGEST_SIDE: Final = 1280
"""Bounds in pixels of the longer side of what is drawn: names stay legible on small images."""


@dataclass(frozen=True, kw_only=True)
class LabelledBox:
    """A box as the model sees its image: x1, y1, x2, y2 in 0-1, corners in order."""

    box: Box
    label: str = ""


def find_boxes(text: str) -> tuple[LabelledBox, ...]:
    """All ``<box>[[x1, y1, x2, y2], …]</box>`` of an answer, the ``<ref>`` before it as label.

    An element that is no list of four numbers in 0-1000 is passed over.
    """
    found: list[LabelledBox] = []
    for match in _ELEMENT.finditer(text):
        converted = thousand_to_unit(match["boxes"])
        if not converted.num_boxes:
            continue
        boxes = json.loads(converted.text)
        for x1, y1, x2, y2 in boxes if isinstance(boxes[0], list) else [boxes]:
            box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
            found.append(LabelledBox(box=box, label=(match["label"] or "").strip()))
    return tuple(found)


def from_padded(box: Box, size: tuple[int, int]) -> Box:
    """Where a box of the square lies on the image inside it; undoes ``boxes.pad_to_square``.

    Args:
        box: in 0-1 of the padded square.
        size: (width, height) of the image.

    Returns:
        In 0-1 of the image, cut at its edges.
    """
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    x1, x2 = (min(max((x * side - left) / width, 0.0), 1.0) for x in (box[0], box[2]))
    y1, y2 = (min(max((y * side - top) / height, 0.0), 1.0) for y in (box[1], box[3]))
    return x1, y1, x2, y2


def draw_boxes(
    image: Image.Image, boxes: Sequence[LabelledBox], *, padded: bool = False
) -> Image.Image:
    """The image, brought to a size fit for a screen, with its boxes.

    Args:
        image: RGB; left unchanged.
        boxes: as :func:`find_boxes` gives them.
        padded: the boxes refer to the image padded to a square (``pad2square``).
    """
    largest = max(image.size)
    scale = min(max(largest, SMALLEST_SIDE), LARGEST_SIDE) / largest
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = image.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    line = max(4, round(max(width, height) / 128))
    font = ImageFont.load_default(max(16, round(max(width, height) / 28)))
    corners = []
    for number, each in enumerate(boxes):
        box = from_padded(each.box, image.size) if padded else each.box
        x1, x2 = round(box[0] * (width - 1)), round(box[2] * (width - 1))
        y1, y2 = round(box[1] * (height - 1)), round(box[3] * (height - 1))
        corners.append((x1, y1))
        # White outside and black inside of the coloured line: seen on ground of any colour.
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline=(255, 255, 255), width=2)
        draw.rectangle((x1, y1, x2, y2), outline=(0, 0, 0), width=line + 1)
        draw.rectangle((x1, y1, x2, y2), outline=_colour(number), width=line)
    # Names last: no line crosses them.
    for number, (each, corner) in enumerate(zip(boxes, corners, strict=True)):
        if each.label:
            _write_label(draw, each.label, corner, (width, height), _colour(number), font)
    return canvas


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


def _write_label(
    draw: ImageDraw.ImageDraw,
    label: str,
    corner: tuple[int, int],
    size: tuple[int, int],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """On a plate above the corner; moved to where all of it is within the image."""
    text = label if len(label) <= 40 else label[:39] + "…"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    plate_width, plate_height = round(right - left) + 8, round(bottom - top) + 8
    x = max(0, min(corner[0], size[0] - plate_width))
    y = corner[1] - plate_height
    if y < 0:
        y = min(corner[1], size[1] - plate_height)
    draw.rectangle((x, y, x + plate_width, y + plate_height), fill=colour, outline=(0, 0, 0))
    # Luma weights of R, G, B (ITU-R BT.601).
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    draw.text((x + 4 - left, y + 4 - top), text, fill=ink, font=font)
