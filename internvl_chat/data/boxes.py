"""Boxes in text: 0-1 floats or pixels <-> ``<box>[[x1, y1, x2, y2]]</box>`` in 0-1000.

Pure. Only a bracketed group of exactly four numbers in range counts as a box; several boxes are
merged only where they already stood in one list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from internvl_chat.model.constants import BOX_END_TOKEN, BOX_START_TOKEN

_NUMBER: Final = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_FOUR: Final = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
_SOME: Final = rf"\[\s*{_FOUR}(?:\s*,\s*{_FOUR})*\s*\]|{_FOUR}"
_START, _END = re.escape(BOX_START_TOKEN), re.escape(BOX_END_TOKEN)
# An element ends where another one begins: a <box> that is never closed costs no second look.
_LIST: Final = re.compile(
    rf"(?P<tagged>{_START}(?P<inside>(?:(?!{_START}).)*?){_END})|(?P<boxes>{_SOME})(?!\[)",
    re.DOTALL,
)
_INSIDE: Final = re.compile(rf"\s*(?:{_SOME})\s*")
# \left[…], ][…] and v2[…] are intervals and subscripts.
_NO_BOX_AFTER: Final = re.compile(r"(?:\\[A-Za-z]*|[0-9_\[\]])\Z")
_GROUP: Final = re.compile(_FOUR)
_VALUE: Final = re.compile(_NUMBER)
_FEW_PIXELS: Final = 20  # a side below which hundredths of a pixel do not tell 1000 steps apart

Box = tuple[float, float, float, float]
BoxForm = Literal["unit", "1000", "pixel"]
BOX_FORMS: tuple[BoxForm, ...] = ("unit", "1000", "pixel")
"""Bare lists of floats in 0-1, ``<box>`` elements of integers in 0-1000, bare lists of pixels."""


@dataclass(frozen=True)
class Converted:
    """Text after conversion."""

    text: str
    num_boxes: int = 0
    problems: tuple[str, ...] = ()
    """Boxes whose corners are out of order after conversion."""
    unconverted: tuple[str, ...] = ()
    """What looks like boxes and was left as it is, with the reason."""


@dataclass(frozen=True)
class _Reading:
    """How boxes of a form are told from other text, and where they lie in 0-1."""

    form: BoxForm
    width: float
    height: float

    def refusal(self, match: re.Match[str], text: str) -> str | None:
        """Why a match is no box of this form; None if it is one."""
        if self.form == "1000":
            if match["tagged"] is None:
                return "stands in no <box>"
            if not _INSIDE.fullmatch(match["inside"]):
                return "is no list of boxes of four numbers"
            if not all(v.is_integer() for box in _boxes(match) for v in box):
                return "has numbers that are not whole"
        else:
            if match["tagged"] is not None:
                return "is a <box> already"
            if _NO_BOX_AFTER.search(text, max(match.start() - 16, 0), match.start()):
                return "reads as an interval or a subscript"
            # [0, 1, 1, 0] is a list of bits
            if self.form == "unit" and any("." not in group for group in _groups(match)):
                return "has no decimal point"
        if not all(self.holds(box) for box in _boxes(match)):
            return "is out of range"
        return None

    def holds(self, box: Box) -> bool:
        x1, y1, x2, y2 = box
        return all(0 <= x <= self.width for x in (x1, x2)) and all(
            0 <= y <= self.height for y in (y1, y2)
        )

    def in_unit(self, box: Box) -> Box:
        x1, y1, x2, y2 = box
        return x1 / self.width, y1 / self.height, x2 / self.width, y2 / self.height


def convert_boxes(
    text: str,
    source: BoxForm,
    target: BoxForm,
    *,
    size: tuple[float, float] | None = None,
    pad_size: tuple[float, float] | None = None,
) -> Converted:
    """Rewrite the boxes of a text.

    From 1000 nothing is converted that would not read back: a text whose boxes touch each other or
    follow a digit, say, stays as it is and is told in ``unconverted``.

    Args:
        text: any text. What is no box of ``source`` stays as it is.
        source: the form that is looked for.
        target: the form that is written; another one.
        size: (width, height) of the image, for pixels.
        pad_size: (width, height) of an image that will be padded to a square, to which the boxes
            are then remapped.
    """
    assert size is not None or "pixel" not in (source, target), "pixels need the image's size"
    if "[" not in text:
        return Converted(text)
    converted = _rewrite(text, source, target, size or (1, 1), pad_size)
    if source != "1000" or not converted.num_boxes or pad_size is not None:
        return converted
    back = _rewrite(converted.text, target, "1000", size or (1, 1), None)
    if back.text == _rewrite(text, "1000", "1000", (1, 1), None).text:
        return converted
    told = f'"{shorten(text)}" would not read back as {converted.num_boxes} boxes of 0-1000'
    return Converted(text, unconverted=(*converted.unconverted, told))


def unit_to_1000(text: str, *, pad_size: tuple[float, float] | None = None) -> Converted:
    """Rewrite boxes of floats in 0-1 as ``<box>[[…]]</box>`` of integers in 0-1000.

    A group needs at least one decimal point: ``[0, 1, 1, 0]`` is a list of bits.

    Args:
        text: any text; ``<box>`` elements in it stay as they are.
        pad_size: (width, height) of an image that will be padded to a square, to which the boxes
            are then remapped.
    """
    return convert_boxes(text, "unit", "1000", pad_size=pad_size)


def pixel_to_1000(
    text: str, size: tuple[float, float], *, pad_size: tuple[float, float] | None = None
) -> Converted:
    """Rewrite boxes of pixels as ``<box>[[…]]</box>``.

    Args:
        text: any text; ``<box>`` elements in it stay as they are.
        size: (width, height) of the image the pixels refer to; numbers beyond it are no box.
        pad_size: as in :func:`unit_to_1000`.
    """
    return convert_boxes(text, "pixel", "1000", size=size, pad_size=pad_size)


def thousand_to_unit(text: str) -> Converted:
    """Rewrite ``<box>[[x1, y1, x2, y2], …]</box>`` as bare boxes of floats with three decimals."""
    return convert_boxes(text, "1000", "unit")


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


def box_element(boxes: Sequence[Box]) -> str:
    """``<box>[[…], …]</box>`` of boxes in 0-1, rounded to thousandths and clamped."""
    written = [", ".join(str(v) for v in _thousandths(box)) for box in boxes]
    return f"{BOX_START_TOKEN}[{', '.join(f'[{one}]' for one in written)}]{BOX_END_TOKEN}"


def tagged_boxes(text: str) -> list[list[Box]]:
    """The boxes (0-1) of each well-formed ``<box>`` element of a text, in order."""
    reading = _reading("1000", (1, 1))
    return [
        [reading.in_unit(box) for box in _boxes(match)]
        for match in _LIST.finditer(text)
        if reading.refusal(match, text) is None
    ]


@dataclass(frozen=True)
class PlacedBoxes:
    """Boxes that stand together in a text."""

    start: int
    end: int
    """Their characters are ``text[start:end]``."""
    boxes: tuple[Box, ...]
    """In 0-1, as written: corners may be out of order."""


def placed_boxes(text: str) -> list[PlacedBoxes]:
    """What a text says of places in an image: ``<box>`` elements and bare lists of 0-1, in order.

    Elements that are no list of boxes in 0-1000 are left out.
    """
    if "[" not in text:
        return []
    readings = (_reading("1000", (1, 1)), _reading("unit", (1, 1)))
    found = []
    for match in _LIST.finditer(text):
        reading = next((one for one in readings if one.refusal(match, text) is None), None)
        if reading is not None:
            boxes = tuple(reading.in_unit(box) for box in _boxes(match))
            found.append(PlacedBoxes(match.start(), match.end(), boxes))
    return found


def shorten(text: str) -> str:
    """At most 60 characters, for a message."""
    return text if len(text) <= 60 else text[:57] + "..."


def _reading(form: BoxForm, size: tuple[float, float]) -> _Reading:
    sides = {"unit": (1.0, 1.0), "1000": (1000.0, 1000.0), "pixel": size}
    return _Reading(form, *sides[form])


def _groups(match: re.Match[str]) -> list[str]:
    return _GROUP.findall(match[0])


def _boxes(match: re.Match[str]) -> list[Box]:
    found = []
    for group in _groups(match):
        x1, y1, x2, y2 = (float(v) for v in _VALUE.findall(group))
        found.append((x1, y1, x2, y2))
    return found


def _thousandths(box: Box) -> list[int]:
    return [min(max(round(1000 * v), 0), 1000) for v in box]


def _write(boxes: Sequence[Box], target: BoxForm, size: tuple[float, float]) -> str:
    """Boxes in 0-1 -> text."""
    if target == "1000":
        return box_element(boxes)
    if target == "unit":
        shown = ["[" + ", ".join(f"{v:.3f}" for v in box) + "]" for box in boxes]
    else:
        width, height = size
        decimals = 2 if min(size) >= _FEW_PIXELS else 5
        sides = (width, height, width, height)
        pixels = [[v * side for v, side in zip(box, sides, strict=True)] for box in boxes]
        shown = ["[" + ", ".join(_trimmed(v, decimals) for v in box) + "]" for box in pixels]
    return shown[0] if len(shown) == 1 else "[" + ", ".join(shown) + "]"


def _trimmed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".")


def _rewrite(
    text: str,
    source: BoxForm,
    target: BoxForm,
    size: tuple[float, float],
    pad_size: tuple[float, float] | None,
) -> Converted:
    reading = _reading(source, size)
    count = 0
    problems: list[str] = []
    unconverted: list[str] = []

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        refusal = reading.refusal(match, text)
        if refusal is not None:
            unconverted.append(f"{shorten(match[0])} {refusal}")
            return match[0]
        boxes = [reading.in_unit(box) for box in _boxes(match)]
        if pad_size is not None:
            boxes = [pad_to_square(box, pad_size) for box in boxes]
        for box in boxes:
            corners = _thousandths(box) if target == "1000" else list(box)
            if corners[0] >= corners[2] or corners[1] >= corners[3]:
                written = _write([box], target, size)
                problems.append(f"box {match[0]} becomes {written}: want x1 < x2 and y1 < y2")
        count += len(boxes)
        return _write(boxes, target, size)

    return Converted(_LIST.sub(replace, text), count, tuple(problems), tuple(unconverted))
