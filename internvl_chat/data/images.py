"""Image files -> uint8 tiles -> normalised pixels.

Training resizes with torch's antialiased bicubic kernel on uint8, which on one CPU thread is two to
three times as fast as Pillow's bicubic and differs from it by at most 2 of 255 levels (the resize,
not the decoding, is the cost). EXIF orientation is not applied: widths, heights and boxes in the
annotations refer to the pixels as stored.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl_chat.config import MAX_IMAGE_PIXELS, ImageConfig, NormalizeType
from internvl_chat.data.schema import BadRecordError
from internvl_chat.model.constants import NORMALIZATION

logger = logging.getLogger(__name__)

_TRANSIENT = {
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENFILE,
    errno.EMFILE,
    errno.ENOMEM,
}
_RETRY_SECONDS = (0.1, 0.4, 1.6)
# What Pillow's decoders raise on damaged files, by experience.
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)


# -- files --------------------------------------------------------------------------------------


def resolve_path(root: str, path: str, *, where: str, strict: bool = False) -> str:
    """Join a record's path to its dataset's root and refuse what leaves it.

    Raises:
        BadRecordError: ``..`` or an absolute path leads out of ``root``; with ``strict``, also a
            symbolic link that does.
    """
    base = os.path.abspath(root or ".")
    joined = os.path.normpath(os.path.join(base, path))
    if not _inside(joined, base):
        raise BadRecordError(
            "OUTSIDE_ROOT",
            f'"{path}" lies outside the dataset\'s root {root or "."}',
            where=where,
            fix="Make the path relative to root, or root the common folder.",
        )
    if strict and not _inside(os.path.realpath(joined), os.path.realpath(base)):
        raise BadRecordError(
            "SYMLINK_ESCAPE",
            f'"{path}" is a link that leads out of {root or "."} (--strict_root)',
            where=where,
        )
    return joined


def _inside(path: str, base: str) -> bool:
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)


def read_bytes(path: str, *, where: str) -> bytes:
    """Read a file; transient I/O errors are retried three times, waiting longer each time.

    Raises:
        BadRecordError: it cannot be read.
    """
    for wait_seconds in (*_RETRY_SECONDS, None):
        try:
            with open(path, "rb") as handle:
                return handle.read()
        except OSError as err:
            if err.errno not in _TRANSIENT or wait_seconds is None:
                raise _unreadable(path, err, where) from err
            logger.warning("%s: %s; trying again in %.1f s", path, err.strerror, wait_seconds)
            time.sleep(wait_seconds)
    raise AssertionError("the loop returns or raises")


def _unreadable(path: str, err: OSError, where: str) -> BadRecordError:
    if err.errno == errno.ENOENT:
        return BadRecordError(
            "MISSING_FILE",
            f"no such file: {path}",
            where=where,
            fix='Check "root" in the meta JSON and the record\'s path.',
        )
    return BadRecordError("UNREADABLE_FILE", f"cannot read {path}: {err.strerror}", where=where)


@contextlib.contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Leave the check for decompression bombs to us: Pillow's limit is one global number."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_image(
    raw: bytes | str, *, where: str, path: str = "", max_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Open (not yet decode) an image.

    Args:
        raw: the file's bytes, or its path to read no more than the header.
        where: ``file:line`` of the record.
        path: shown in messages.
        max_pixels: more than this, by the header, is refused before decoding.

    Raises:
        BadRecordError: not an image, or too large.
    """
    try:
        with _own_pixel_limit():
            image = Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
    except FileNotFoundError as err:
        raise _unreadable(path or str(raw), err, where) from err
    except _DECODE_ERRORS as err:
        raise BadRecordError("NOT_AN_IMAGE", f"{path} is no image: {err}", where=where) from err
    width, height = image.size
    if width * height > max_pixels:
        raise BadRecordError(
            "TOO_MANY_PIXELS",
            f"{path} has {width} x {height} = {width * height} pixels, more than {max_pixels}",
            where=where,
            fix="Shrink it or raise --max_image_pixels.",
        )
    return image


def load_image(path: str, *, where: str = "", max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Read a file of any mode Pillow opens as RGB.

    Raises:
        BadRecordError: missing, unreadable, no image, truncated or too large.
    """
    raw = read_bytes(path, where=where)
    return to_rgb(
        open_image(raw, where=where, path=path, max_pixels=max_pixels), where=where, path=path
    )


def to_rgb(image: Image.Image, *, where: str = "", path: str = "") -> Image.Image:
    """Decode and convert to RGB; 16-bit and float greys are scaled, not clipped."""
    try:
        with _own_pixel_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about metadata, one per image and epoch
            image.load()
            if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
                return _grey_to_rgb(image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except _DECODE_ERRORS as err:
        code = "TRUNCATED_IMAGE" if "truncated" in str(err).lower() else "BROKEN_IMAGE"
        raise BadRecordError(code, f"{path} cannot be decoded: {err}", where=where) from err


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32)
    top = float(values.max(initial=0))
    if top > 255:
        values = values * (255.0 / 65535.0 if top <= 65535 else 255.0 / top)
    elif image.mode == "F" and top <= 1:
        values = values * 255.0
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")


# -- pixels -------------------------------------------------------------------------------------


def jpeg_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """Re-encode as JPEG at a quality drawn uniformly from 75 to 100."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=rng.randint(75, 100))
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


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


def resize(image: Image.Image, width: int, height: int) -> Tensor:
    """(3, height, width) uint8, antialiased bicubic, aspect ratio not kept."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).unsqueeze(0)
    if image.size != (width, height):
        pixels = torch.nn.functional.interpolate(
            pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False
        )
    return pixels[0].contiguous()


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with min <= columns * rows <= max, small grids first."""
    found = {
        (i, j)
        for i in range(1, max_tiles + 1)
        for j in range(1, max_tiles + 1)
        if min_tiles <= i * j <= max_tiles
    }
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid)))


def choose_grid(
    size: tuple[float, float], *, min_tiles: int, max_tiles: int, image_size: int
) -> tuple[int, int]:
    """The grid (columns, rows) whose ratio is closest to the image's.

    On a tie the larger grid wins only if the image's area exceeds half of the grid's.
    Source: the published InternVL code's ``find_closest_aspect_ratio``.

    Args:
        size: (width, height) of the image.
        min_tiles, max_tiles: bounds of columns * rows.
        image_size: side of a tile in pixels.
    """
    width, height = size
    ratio, half_tile = width / height, 0.5 * image_size * image_size
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(min(min_tiles, max_tiles), max_tiles):
        difference = abs(ratio - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and width * height > half_tile * columns * rows:
            best = (columns, rows)
    return best


def count_tiles(size: tuple[float, float], config: ImageConfig, *, max_tiles: int) -> int:
    """How many tiles :func:`preprocess` makes of an image of this (width, height)."""
    if not config.dynamic_image_size:
        return 1
    columns, rows = _grid_of(size, config, max_tiles)
    return columns * rows + (config.use_thumbnail and columns * rows > 1)


def _grid_of(size: tuple[float, float], config: ImageConfig, max_tiles: int) -> tuple[int, int]:
    if config.pad2square:
        size = (max(size), max(size))
    return choose_grid(
        size,
        min_tiles=config.min_dynamic_patch,
        max_tiles=max_tiles,
        image_size=config.image_size,
    )


def preprocess(image: Image.Image, config: ImageConfig, *, max_tiles: int = 1) -> Tensor:
    """Make an RGB image into tiles.

    Args:
        image: RGB.
        config: size, padding, tiling.
        max_tiles: the image's share of the budget; used with ``dynamic_image_size``.

    Returns:
        (n, 3, S, S) uint8; row by row, the thumbnail last.
    """
    if config.pad2square:
        image = pad_square(image, config.normalize_type)
    if not config.dynamic_image_size:
        return resize(image, config.image_size, config.image_size).unsqueeze(0)
    return dynamic_tiles(image, config, max_tiles=max_tiles)


def dynamic_tiles(image: Image.Image, config: ImageConfig, *, max_tiles: int) -> Tensor:
    """Resize to the grid's size and cut it row by row; (n, 3, S, S) uint8."""
    side = config.image_size
    columns, rows = _grid_of(image.size, config, max_tiles)
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
