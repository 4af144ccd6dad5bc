"""Boxes in text that no model should learn: malformed, out of range, corners out of order. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from internvl_chat.model.constants import BOX_END_TOKEN, BOX_START_TOKEN, QUAD_START_TOKEN

_NUMBER: Final = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_FOUR: Final = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
_LIST: Final = re.compile(rf"\s*\[\s*{_FOUR}(?:\s*,\s*{_FOUR})*\s*\]\s*")
_GROUP: Final = re.compile(_FOUR)
_VALUE: Final = re.compile(_NUMBER)
# As data/boxes.py: behind \left or v2 stands an interval or a subscript.
_BARE: Final = re.compile(rf"(?<![\w\]\\{{]){_FOUR}(?!\[)")
_COMMAND: Final = re.compile(r"\\[A-Za-z]+\Z")
_SHOWN: Final = 60

Sides = tuple[float, float]


def box_problems(
    text: str, *, has_image: bool, pixels: Sides | None = None
) -> Iterator[tuple[str, str]]:
    """(code, message) of each box that is none or lies wrong.

    Args:
        text: of one turn.
        has_image: whether bare groups of four numbers can be boxes.
        pixels: (width, height) if bare boxes are in pixels, else they are in 0-1.
    """
    pieces = list(_pieces(text))
    for is_tagged, piece in pieces:
        if is_tagged:
            yield from _tagged_problems(piece)
    rest = " ".join(piece for is_tagged, piece in pieces if not is_tagged)
    for tag in (BOX_START_TOKEN, BOX_END_TOKEN):
        if tag in rest:
            yield "BOX_MALFORMED", f"a {tag} without its counterpart"
    if has_image and "[" in rest:
        for match in _bare_boxes(rest, pixels):
            if _is_inverted(_values(match[0])):
                yield "BOX_INVERTED", _inverted(match[0])


def order_boxes(text: str, *, has_image: bool, pixels: Sides | None = None) -> str:
    """The text with the corners of inverted boxes exchanged, which is all that changes.

    Boxes without area are left as they are.
    """

    done = []
    for is_tagged, piece in _pieces(text):
        if not is_tagged:
            done.append(_order_bare(piece, has_image, pixels))
        elif _LIST.fullmatch(_inside(piece)):
            done.append(_GROUP.sub(lambda group: _ordered(group[0]), piece))
        else:
            done.append(piece)
    return "".join(done)


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is ``<box>…</box>``, piece) in order; together they are the text.

    By hand, as a lazy regular expression takes quadratic time where the end is missing.
    """
    position = 0
    while True:
        start = text.find(BOX_START_TOKEN, position)
        end = text.find(BOX_END_TOKEN, start) if start >= 0 else -1
        if end < 0:
            break
        end += len(BOX_END_TOKEN)
        yield False, text[position:start]
        yield True, text[start:end]
        position = end
    yield False, text[position:]


def _inside(tagged: str) -> str:
    return tagged[len(BOX_START_TOKEN) : -len(BOX_END_TOKEN)]


def holds_boxes(text: str, *, pixels: Sides | None = None) -> bool:
    """Whether the text refers to places in an image; ``pixels`` as in :func:`box_problems`."""
    if BOX_START_TOKEN in text or QUAD_START_TOKEN in text:
        return True
    return "[" in text and any(True for _ in _bare_boxes(text, pixels))


def _tagged_problems(tagged: str) -> Iterator[tuple[str, str]]:
    inside = _inside(tagged)
    if not _LIST.fullmatch(inside):
        yield "BOX_MALFORMED", f"{_short(tagged)} is no list of boxes"
        return
    for group in _GROUP.findall(inside):
        values = _values(group)
        if not all(0 <= value <= 1000 for value in values):
            yield "BOX_RANGE", f"box {_short(group)} has coordinates outside 0-1000"
        elif "." in group:
            yield "BOX_MALFORMED", f"box {_short(group)} holds decimals, want whole numbers 0-1000"
        if _is_inverted(values):
            yield "BOX_INVERTED", _inverted(group)


def _bare_boxes(text: str, pixels: Sides | None) -> Iterator[re.Match[str]]:
    for match in _BARE.finditer(text):
        if _COMMAND.search(text, max(match.start() - 16, 0), match.start()):
            continue
        values = _values(match[0])
        if pixels is None:
            in_range = "." in match[0] and all(0 <= value <= 1 for value in values)
        else:
            limits = (*pixels, *pixels)
            in_range = all(0 <= v <= limit for v, limit in zip(values, limits, strict=True))
        if in_range:
            yield match


def _order_bare(text: str, has_image: bool, pixels: Sides | None) -> str:
    if not has_image or "[" not in text:
        return text
    pieces, position = [], 0
    for match in _bare_boxes(text, pixels):
        pieces += [text[position : match.start()], _ordered(match[0])]
        position = match.end()
    return "".join([*pieces, text[position:]])


def _ordered(group: str) -> str:
    """The group with its own numbers, smaller ones first; the space between them is kept."""
    numbers = list(_VALUE.finditer(group))
    words = [match[0] for match in numbers]
    for first, second in ((0, 2), (1, 3)):
        if float(words[first]) > float(words[second]):
            words[first], words[second] = words[second], words[first]
    pieces, position = [], 0
    for match, word in zip(numbers, words, strict=True):
        pieces += [group[position : match.start()], word]
        position = match.end()
    return "".join([*pieces, group[position:]])


def _values(group: str) -> list[float]:
    return [float(value) for value in _VALUE.findall(group)]


def _is_inverted(values: list[float]) -> bool:
    x1, y1, x2, y2 = values
    return x1 >= x2 or y1 >= y2


def _inverted(group: str) -> str:
    return f"box {_short(group)}: want x1 < x2 and y1 < y2"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
