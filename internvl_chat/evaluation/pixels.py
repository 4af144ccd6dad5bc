"""Images and videos of questions -> tiles, as the original evaluators make them.

Training resizes with torch's kernel; evaluation with Pillow's antialiased bicubic, as what gave
the published numbers did. Tiles stay uint8 and are normalised on the model's device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl_chat.chat.media_errors import told_for_inference
from internvl_chat.config import DecodeConfig, NormalizeType
from internvl_chat.data.images import load_image
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.tiles import choose_grid
from internvl_chat.data.video import choose_frames, open_video
from internvl_chat.evaluation.task import AS_STORED, Question, Tiling, VideoClip
from internvl_chat.model.constants import IMAGE_TAG

_UNBOUNDED_SECONDS = 100_000.0


@dataclass(frozen=True, kw_only=True)
class TileRule:
    """How an image becomes tiles of S x S pixels."""

    side: int
    """S"""
    max_tiles: int | None
    """Most tiles, without the thumbnail; None: the whole image is one tile."""
    has_thumbnail: bool
    """The whole image is added where there are several tiles."""
    normalize_type: NormalizeType
    decode: DecodeConfig = AS_STORED
    """How files become RGB."""


def tiles_of(image: Image.Image, rule: TileRule, *, max_tiles: int | None = None) -> Tensor:
    """(n, 3, S, S) uint8 of an RGB image; the aspect ratio is not kept and nothing is padded.

    Args:
        image: RGB.
        rule: sizes.
        max_tiles: of this image, in place of the rule's.
    """
    most = max_tiles or rule.max_tiles
    if rule.max_tiles is None or most is None:
        return torch.stack([_resized(image, rule.side, rule.side)])
    side = rule.side
    columns, rows = choose_grid(image.size, min_tiles=1, max_tiles=most, image_size=side)
    whole = _resized(image, columns * side, rows * side)
    tiles = whole.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
    tiles = tiles.reshape(rows * columns, 3, side, side)
    if rule.has_thumbnail and len(tiles) > 1:
        tiles = torch.cat([tiles, _resized(image, side, side)[None]])
    return tiles


def _resized(image: Image.Image, width: int, height: int) -> Tensor:
    """(3, height, width) uint8."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


@told_for_inference()
def load_tiles(
    question: Question, rule: TileRule, tiling: Tiling
) -> tuple[Tensor | None, list[int]]:
    """Read what a question shows.

    Returns:
        (n, 3, S, S) uint8 of all its images and frames, None without any; and how many tiles
        stand under each of the image tags, one tag being put in front where there is none.

    Raises:
        BadRecordError: a file cannot be used, or tags and images do not agree.
    """
    if question.video is not None:
        frames = load_frames(question.video, rule.decode)
        parts = [tiles_of(frame, rule, max_tiles=question.max_tiles) for frame in frames]
    elif tiling == "enlarge_first":
        parts = _enlarged_first(question, rule)
    else:
        images = (source.open(rule.decode) for source in question.images)
        parts = [tiles_of(image, rule, max_tiles=question.max_tiles) for image in images]
    if not parts:
        return None, []
    counts = [len(part) for part in parts]
    tags = question.num_image_tags
    if tags not in (0, len(parts)):
        raise BadRecordError(
            "IMAGE_TAGS", f"{tags} {IMAGE_TAG} tags for {len(parts)} images", where=question.id
        )
    return torch.cat(parts), counts if tags else [sum(counts)]


def _enlarged_first(question: Question, rule: TileRule) -> list[Tensor]:
    if not question.images:
        return []
    first = question.images[0].open(rule.decode)
    if rule.max_tiles is None:
        return [tiles_of(first, rule)]
    twice = (2 * first.width, 2 * first.height)
    parts = [tiles_of(first.resize(twice, Image.Resampling.BILINEAR), rule)]
    others = (source.open(rule.decode) for source in question.images[1:])
    parts += [tiles_of(image, rule, max_tiles=1) for image in others]
    return parts


def frame_indices(
    num_segments: int, *, first: int, last: int, rate: float, bounds: tuple[float, float] | None
) -> list[int]:
    """Frames in the middles of equal stretches, as MVBench's own code takes them.

    Args:
        num_segments: how many.
        first, last: the video's first and last frame.
        rate: frames per second.
        bounds: start and end in seconds.
    """
    start, end = bounds or (-_UNBOUNDED_SECONDS, _UNBOUNDED_SECONDS)
    low = max(first, round(start * rate))
    high = min(round(end * rate), last)
    stretch = float(high - low) / num_segments
    return [int(low + stretch / 2 + np.round(stretch * n)) for n in range(num_segments)]


def load_frames(clip: VideoClip, decode: DecodeConfig = AS_STORED) -> list[Image.Image]:
    """The frames of a clip, RGB; ``decode`` is the rule for images, of a folder or a GIF.

    Raises:
        BadRecordError: missing, unreadable, or bounds outside the video.
    """
    if clip.frames_per_second is not None:
        return _folder_frames(clip, clip.frames_per_second, decode)
    video = open_video(clip.path, where=clip.path, decode=decode)
    if clip.is_of_training:
        chosen = choose_frames(
            video,
            clip=clip.bounds,
            min_num_frame=clip.num_segments,
            max_num_frame=clip.num_segments,
            rng=None,
            where=clip.path,
        )
        return video.frames(chosen)
    rate = video.frames_per_second or 1.0
    last = video.num_frames - 1
    wanted = frame_indices(clip.num_segments, first=0, last=last, rate=rate, bounds=clip.bounds)
    _require_inside(wanted, 0, last, clip)
    return video.frames(wanted)


def _folder_frames(clip: VideoClip, rate: float, decode: DecodeConfig) -> list[Image.Image]:
    try:
        last = len(os.listdir(clip.path))
    except OSError as err:
        raise BadRecordError(
            "UNREADABLE_FILE", f"cannot list {clip.path}: {err.strerror}", where=clip.path
        ) from err
    wanted = frame_indices(clip.num_segments, first=1, last=last, rate=rate, bounds=clip.bounds)
    _require_inside(wanted, 1, last, clip)
    paths = (str(Path(clip.path) / f"{i:05d}.jpg") for i in wanted)
    return [load_image(path, where=clip.path, decode=decode) for path in paths]


def _require_inside(wanted: Sequence[int], first: int, last: int, clip: VideoClip) -> None:
    if min(wanted) < first or max(wanted) > last:
        raise BadRecordError(
            "CLIP",
            f"bounds {clip.bounds} s lie outside the video of {last - first + 1} frames",
            where=clip.path,
        )
