"""RGB images -> uint8 tiles -> normalised pixels.

Training resizes with torch's antialiased bicubic kernel on uint8, which on one CPU thread is two to
three times as fast as Pillow's bicubic and differs from it by at most 2 of 255 levels (the resize,
not the decoding, is the cost).
"""

from __future__ import annotations

import io
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl_chat.config import ImageConfig, NormalizeType
from internvl_chat.data.images import open_raster
from internvl_chat.data.tiles import grid_of
from internvl_chat.model.constants import NORMALIZATION


def jpeg_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """Re-encode as JPEG at a quality drawn uniformly from 75 to 100."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=rng.randint(75, 100))
    return open_raster(io.BytesIO(buffer.getvalue())).convert("RGB")


def pad_square(image: Image.Image, normalize_type: NormalizeType = "imagenet") -> Image.Image:
    """Paste centred on a square of the mean colour."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    mean = NORMALIZATION[normalize_type][0]
    colour = (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255))
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def resize(image: Image.Image | np.ndarray, width: int, height: int) -> Tensor:
    """(3, height, width) uint8, antialiased bicubic, aspect ratio not kept.

    Args:
        image: RGB, or (H, W, 3) uint8.
    """
    array = image if isinstance(image, np.ndarray) else np.array(image, dtype=np.uint8)
    pixels = torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0)
    if array.shape[:2] != (height, width):
        pixels = torch.nn.functional.interpolate(
            pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False
        )
    return pixels[0].contiguous()


def preprocess(
    image: Image.Image | np.ndarray,
    config: ImageConfig,
    *,
    max_tiles: int = 1,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Make an RGB image into tiles.

    Args:
        image: RGB, or (H, W, 3) uint8.
        config: size, padding, tiling.
        max_tiles: the image's share of the budget; used with ``dynamic_image_size``.
        size: (width, height) that tiles are chosen by, of an image decoded at a reduced size; its
            own by default.

    Returns:
        (n, 3, S, S) uint8; row by row, the thumbnail last.
    """
    if config.pad2square:
        whole = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image = pad_square(whole, config.normalize_type)
    if not config.dynamic_image_size:
        return resize(image, config.image_size, config.image_size).unsqueeze(0)
    return dynamic_tiles(image, config, max_tiles=max_tiles, size=size or _size(image))


def _size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return image.size


def dynamic_tiles(
    image: Image.Image | np.ndarray, config: ImageConfig, *, max_tiles: int, size: tuple[int, int]
) -> Tensor:
    """Resize to the grid of ``size`` and cut it row by row; (n, 3, S, S) uint8."""
    side = config.image_size
    columns, rows = grid_of(size, config, max_tiles)
    pixels = resize(image, columns * side, rows * side)
    tiles = pixels.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
    tiles = tiles.reshape(rows * columns, 3, side, side)
    if config.use_thumbnail and rows * columns > 1:
        tiles = torch.cat([tiles, resize(image, side, side).unsqueeze(0)])
    return tiles


def normalize_pixels(
    pixels: Tensor,
    *,
    normalize_type: NormalizeType = "imagenet",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(N, 3, H, W) uint8 -> (x / 255 - mean) / std in ``dtype``, on the device of ``pixels``.

    One multiply and one add in fp32 (at most 5e-7 from the three separate steps), then the cast.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        for values in NORMALIZATION[normalize_type]
    )
    return pixels.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std).to(dtype)
