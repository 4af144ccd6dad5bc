"""A checked record -> turns to render and the number of tiles of each image.

Pure, and shared by the two places that need it: counting tokens ahead of training (from stated or
header sizes) and building a sample (from the opened images). Both therefore agree by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from internvl_chat.config import ImageConfig
from internvl_chat.data import boxes
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.schema import BadRecordError, Record, Size
from internvl_chat.data.tiles import count_tiles
from internvl_chat.data.video import expand_video_tag


@dataclass(frozen=True, slots=True)
class ExpandedRecord:
    """What is left to do is rendering and tokenizing."""

    turns: tuple[tuple[str, str], ...]
    num_tiles: tuple[int, ...]
    """Tiles per ``<image>`` tag."""
    warnings: tuple[str, ...]


def needs_sizes(record: Record, spec: DatasetSpec, images: ImageConfig) -> bool:
    """Whether the ids of this record depend on the sizes of its images."""
    if not record.images:
        return False
    pads_boxes = images.pad2square and spec.box_format != "keep"
    return images.dynamic_image_size or spec.box_format == "pixel_to_1000" or pads_boxes


def expand_record(
    record: Record,
    spec: DatasetSpec,
    images: ImageConfig,
    *,
    sizes: Sequence[Size] | None = None,
    num_frames: int = 0,
    where: str,
) -> ExpandedRecord:
    """Expand the video tag, convert boxes, count tiles.

    Args:
        sizes: (width, height) per image; needed only if :func:`needs_sizes`.
        num_frames: frames taken of the record's video.
        where: ``file:line``, for messages.

    Raises:
        BadRecordError: boxes cannot be converted.
    """
    if record.video is not None:
        turns = tuple((expand_video_tag(q, num_frames), a) for q, a in record.turns)
        return ExpandedRecord(turns, (1,) * num_frames, record.warnings)
    turns, warnings = record.turns, record.warnings
    if spec.box_format != "keep" and record.images:
        turns, problems = _convert_boxes(record, spec, images, sizes, where)
        warnings += problems
    if not images.dynamic_image_size:
        return ExpandedRecord(turns, (1,) * len(record.images), warnings)
    budget = images.tile_budget(len(record.images), spec.max_dynamic_patch)
    num_tiles = tuple(count_tiles(size, images, max_tiles=budget) for size in sizes or ())
    return ExpandedRecord(turns, num_tiles, warnings)


def _convert_boxes(
    record: Record,
    spec: DatasetSpec,
    images: ImageConfig,
    sizes: Sequence[Size] | None,
    where: str,
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    distinct = set(sizes or ())
    problems: list[str] = []

    def convert(text: str) -> str:
        if "[" not in text:
            return text
        if len(distinct) > 1:
            raise BadRecordError(
                "BOX",
                f"box_format {spec.box_format} needs to know which of {len(record.images)} images "
                "of different sizes a box refers to",
                where=where,
                fix="Convert these boxes beforehand.",
            )
        size = next(iter(distinct), None)
        pad_size = size if images.pad2square else None
        if spec.box_format == "unit_to_1000":
            converted = boxes.unit_to_1000(text, pad_size=pad_size)
        else:
            assert size is not None, "needs_sizes() asks for sizes of pixel boxes"
            converted = boxes.pixel_to_1000(text, size, pad_size=pad_size)
        problems.extend(f"BOX_INVERTED: {problem}" for problem in converted.problems)
        return converted.text

    return tuple((convert(q), convert(a)) for q, a in record.turns), tuple(problems)
