"""A loaded record -> what the page shows of it, as plain values that JSON can hold."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from internvl_chat.config import ImageConfig
from internvl_chat.data.boxes import Box, PlacedBoxes, placed_boxes
from internvl_chat.data.check.box_text import box_problems
from internvl_chat.data.dataset import Loaded
from internvl_chat.data.encode import Encoder
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.report.spans import TextPiece, text_pieces
from internvl_chat.data.report.tile_images import TiledImage, assemble, jpeg_address, split_tiles
from internvl_chat.model.constants import (
    IGNORE_INDEX,
    IMG_START_TOKEN,
    REF_END_TOKEN,
    REF_START_TOKEN,
)

LONGEST_TEXT: Final = 20_000
"""Characters of a sample that the page holds."""
_SIDES: Final = ((1, 440), (4, 300), (12, 220))
"""(up to so many images, longest side of each in pixels)."""
_FRAME_SIDE: Final = 176
_LABEL: Final = re.compile(
    rf"{re.escape(REF_START_TOKEN)}([^<]*){re.escape(REF_END_TOKEN)}\s*\Z", re.DOTALL
)
_LABEL_REACH: Final = 300
"""Characters before a box in which its <ref> is looked for."""


@dataclass(frozen=True, kw_only=True)
class DrawnBox:
    """A box on an image."""

    corners: Box
    """x1, y1, x2, y2 in 0-1 of what the model sees, in order and within the image."""
    label: str
    """What ``<ref>`` before it says."""
    group: int
    """Which stretch of the text gives it."""


@dataclass(frozen=True, kw_only=True)
class SampleImage:
    """An image or a frame of a sample."""

    address: str
    """``data:`` of a small JPEG."""
    file_name: str
    width: int
    height: int
    columns: int
    rows: int
    has_thumbnail: bool
    is_frame: bool
    boxes: tuple[DrawnBox, ...]


@dataclass(frozen=True, kw_only=True)
class GallerySample:
    """What the page shows of a record."""

    dataset: str
    where: str
    num_tokens: int
    num_supervised: int
    num_tiles: int
    is_truncated: bool
    shown_images: tuple[SampleImage, ...]
    pieces: tuple[TextPiece, ...]
    num_hidden_characters: int
    """Of the text's end, beyond LONGEST_TEXT."""
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For the page; pieces as lists, of which there are many."""
        table = {name: getattr(self, name) for name in self.__dataclass_fields__}
        table["shown_images"] = [asdict(one) for one in self.shown_images]
        table["pieces"] = [
            [one.text, one.kind, int(one.is_special), one.times, one.mark] for one in self.pieces
        ]
        return table


def gallery_sample(
    loaded: Loaded, spec: DatasetSpec, encoder: Encoder, images: ImageConfig, *, where: str
) -> GallerySample:
    """Make a record's entry of the gallery.

    Args:
        loaded: the record, its tiles and ids.
        spec: its dataset.
        encoder: that encoded it.
        images: how its images were cut.
        where: ``file:line``.
    """
    encoded = loaded.encoded
    placed = placed_boxes(encoded.text) if loaded.num_tiles else []
    pieces = text_pieces(encoder, encoded, [(one.start, one.end) for one in placed])
    shown, hidden = _shortened(pieces)
    return GallerySample(
        dataset=spec.name,
        where=where,
        num_tokens=len(encoded.input_ids),
        num_supervised=int((encoded.labels != IGNORE_INDEX).sum()),
        num_tiles=sum(loaded.num_tiles),
        is_truncated=encoded.truncated,
        shown_images=_sample_images(loaded, spec, images, placed),
        pieces=tuple(shown),
        num_hidden_characters=hidden,
        remarks=tuple(_remarks(loaded, placed, max_seq_length=encoder.config.max_seq_length)),
    )


def boxes_by_image(
    text: str, placed: Sequence[PlacedBoxes], num_images: int
) -> list[list[DrawnBox]]:
    """Boxes for each image: those that stand behind it and before the next one."""
    starts = [match.start() for match in re.finditer(re.escape(IMG_START_TOKEN), text)]
    found: list[list[DrawnBox]] = [[] for _ in range(num_images)]
    for group, stretch in enumerate(placed):
        number = min(max(bisect_right(starts, stretch.start) - 1, 0), num_images - 1)
        label = _LABEL.search(text[max(stretch.start - _LABEL_REACH, 0) : stretch.start])
        for box in stretch.boxes:
            one = DrawnBox(
                corners=_in_order(box), label=label[1].strip() if label else "", group=group
            )
            found[number].append(one)
    return found


def _in_order(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _sample_images(
    loaded: Loaded, spec: DatasetSpec, images: ImageConfig, placed: Sequence[PlacedBoxes]
) -> tuple[SampleImage, ...]:
    if loaded.pixel_values is None:
        return ()
    is_video = loaded.record.video is not None
    budget = 1 if is_video else images.tile_budget(len(loaded.num_tiles), spec.max_dynamic_patch)
    tiled = split_tiles(
        loaded.pixel_values, loaded.num_tiles, loaded.image_sizes, images, max_tiles=budget
    )
    names = [str(loaded.record.video)] * len(tiled) if is_video else loaded.record.images
    drawn: list[list[DrawnBox]] = [[] for _ in tiled]
    if not is_video:
        drawn = boxes_by_image(loaded.encoded.text, placed, len(tiled))
    side = _FRAME_SIDE if is_video else _longest_side(len(tiled))
    return tuple(
        _sample_image(one, side, name, tuple(boxes), is_frame=is_video)
        for one, name, boxes in zip(tiled, names, drawn, strict=True)
    )


def _longest_side(num_images: int) -> int:
    return next((side for limit, side in _SIDES if num_images <= limit), _FRAME_SIDE)


def _sample_image(
    image: TiledImage, side: int, name: str, boxes: tuple[DrawnBox, ...], *, is_frame: bool
) -> SampleImage:
    return SampleImage(
        address=jpeg_address(assemble(image, longest_side=side)),
        file_name=name,
        width=image.size[0],
        height=image.size[1],
        columns=image.grid[0],
        rows=image.grid[1],
        has_thumbnail=image.has_thumbnail,
        is_frame=is_frame,
        boxes=boxes,
    )


def _shortened(pieces: Sequence[TextPiece]) -> tuple[list[TextPiece], int]:
    """Pieces up to LONGEST_TEXT, and the number of characters behind them."""
    kept: list[TextPiece] = []
    room, hidden = LONGEST_TEXT, 0
    for piece in pieces:
        if room > 0:
            text = piece.text if piece.is_special else piece.text[:room]
            kept.append(
                TextPiece(
                    text=text,
                    kind=piece.kind,
                    is_special=piece.is_special,
                    times=piece.times,
                    mark=piece.mark,
                )
            )
            room -= len(text)
            hidden += len(piece.text) - len(text)
        else:
            hidden += len(piece.text) * piece.times
    return kept, hidden


def _remarks(loaded: Loaded, placed: Sequence[PlacedBoxes], *, max_seq_length: int) -> list[str]:
    """What somebody who looks at the sample should know, by the codes of docs/data_checks.md."""
    record, told = loaded.record, list(loaded.record.warnings)
    if loaded.encoded.truncated:
        told.append(f"TEXT_CUT: the text is cut at {max_seq_length} tokens")
    if record.dropped_leading_answer:
        told.append("LEADING_ANSWER: an answer before the first question was dropped")
    stated = record.sizes or ()
    for place, (size, actual) in enumerate(zip(stated, loaded.image_sizes, strict=False), 1):
        if tuple(size) not in (actual, actual[::-1]):
            told.append(
                f"SIZE_DIFFERS: image {place} is {actual[0]} x {actual[1]}, the record says "
                f"{size[0]:g} x {size[1]:g}"
            )
    problems = box_problems(loaded.encoded.text, has_image=bool(loaded.num_tiles))
    told += [f"{code}: {problem}" for code, problem in problems]
    if placed and record.video is not None:
        told.append("NOT_DRAWN: boxes of a video do not say which frame they are of")
    return told
