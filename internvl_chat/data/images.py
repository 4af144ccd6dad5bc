"""Image files -> RGB images: found, read, opened and decoded. Nothing here needs torch.

EXIF orientation is not applied: widths, heights and boxes in the annotations refer to the pixels as
stored.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import struct
import time
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from internvl_chat.config import MAX_IMAGE_PIXELS
from internvl_chat.data.schema import BadRecordError

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
