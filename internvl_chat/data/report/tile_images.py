"""Tiles, as the model gets them, put together to small images of the right shape for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.config import ImageConfig
from internvl_chat.data.tiles import grid_of

_JPEG_QUALITY: Final = 80

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TiledImage:
    """One image of a sample."""

    tiles: Tensor
    """(n, 3, S, S) uint8; row by row, the whole image last if ``has_thumbnail``."""
    grid: Grid
    """(columns, rows)."""
    has_thumbnail: bool
    size: tuple[int, int]
    """(width, height) of the file's image."""
    shown_size: tuple[int, int]
    """(width, height) of what was squeezed into the tiles: the image, or the padded square."""


def split_tiles(
    pixel_values: Tensor,
    num_tiles: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    images: ImageConfig,
    *,
    max_tiles: int,
) -> list[TiledImage]:
    """A sample's tiles, image by image.

    Args:
        pixel_values: (sum of ``num_tiles``, 3, S, S) uint8.
        num_tiles: of each image.
        sizes: (width, height) of each image.
        images: how they were cut.
        max_tiles: an image's share of the budget; 1 for frames.
    """
    found = []
    for tiles, size in zip(pixel_values.split(list(num_tiles)), sizes, strict=True):
        grid = (1, 1)
        if images.dynamic_image_size and max_tiles > 1:
            grid = grid_of(size, images, max_tiles)
        one = TiledImage(
            tiles=tiles,
            grid=grid,
            has_thumbnail=len(tiles) > grid[0] * grid[1],
            size=size,
            shown_size=(max(size), max(size)) if images.pad2square else size,
        )
        found.append(one)
    return found


def assemble(image: TiledImage, *, longest_side: int) -> Image.Image:
    """What the tiles show, in the image's own shape; details are the tiles'.

    Args:
        image: its tiles.
        longest_side: in pixels; small tiles are not enlarged to it.
    """
    columns, rows = image.grid
    side = image.tiles.shape[-1]
    tiles = image.tiles[: columns * rows].view(rows, columns, 3, side, side)
    pixels = tiles.permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
    whole = Image.fromarray(pixels.to(torch.uint8).numpy())
    longest = min(longest_side, max(whole.size))
    scale = longest / max(image.shown_size)
    width, height = (max(1, round(one * scale)) for one in image.shown_size)
    return whole.resize((width, height), Image.Resampling.BICUBIC)


def jpeg_address(image: Image.Image) -> str:
    """A ``data:`` address that a page can hold."""
    written = io.BytesIO()
    image.save(written, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
