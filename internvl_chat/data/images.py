"""Image files -> RGB images, by one rule (:class:`DecodeConfig`). Nothing here needs torch.

What a viewer shows is what the model sees: images turned by their EXIF orientation, transparency
on white, the first frame of an animation, 16-bit and float greys scaled. The published checkpoints
were trained otherwise, so the rule is a checkpoint's.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from internvl_chat.config import MAX_IMAGE_PIXELS, DecodeConfig
from internvl_chat.data import fast_jpeg
from internvl_chat.data.file_kinds import KIND_BYTES, kind_of
from internvl_chat.data.modes import DEEP_GREYS, deep_grey_to_rgb, on_ground
from internvl_chat.data.orientation import UPRIGHT, ImageGeometry, turned, turned_size
from internvl_chat.data.png_chunks import with_scaled_transparency, without_text
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.storage import open_file, read_bytes

FORMATS: Final = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "PPM",
)
"""What Pillow decodes by itself; it hands others, such as PostScript, to programs."""

# What Pillow's decoders raise on damaged files, by experience and by fuzzing.
DECODE_ERRORS: Final = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION: Final = 0x0112  # EXIF tag
_ADDRESS: Final = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>|\s*at 0x[0-9a-fA-F]+")
_AS_SHOWN: Final = DecodeConfig.as_shown()

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image file's pixels and where they come from."""

    pixels: Image.Image | np.ndarray
    """As shown: an RGB image, or (H, W, 3) uint8 of the fast backend, perhaps smaller than
    ``geometry.size``."""
    geometry: ImageGeometry

    @property
    def rgb(self) -> Image.Image:
        """The pixels as an image."""
        pixels = self.pixels
        return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


@functools.lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    """FORMATS that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _PixelLimit:
    """Leaves the check for decompression bombs to us: Pillow's limit is one global number.

    Threads that decode at once share the change; the last one to finish takes it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: int | None = None

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    Image.MAX_IMAGE_PIXELS = self._before


_pillows_limit = _PixelLimit()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's limit and without its remarks about metadata, one per image and epoch."""
    with _pillows_limit.lifted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_raster(file: BinaryIO) -> Image.Image:
    """``Image.open`` by our list of formats, whatever else plugins have registered.

    Raises:
        UnidentifiedImageError: it is none of them; a Pillow decoder may raise others.
    """
    return Image.open(file, formats=_known_formats())


def require_backend(decode: DecodeConfig) -> None:
    """Raises:
    ConfigError: the packages of the backend are not installed.
    """
    if decode.image_backend == "fast":
        fast_jpeg.library()


def open_image(
    raw: bytes | str, *, where: str, path: str = "", max_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Open (not yet decode) an image.

    Args:
        raw: the file's bytes, or its path.
        where: ``file:line`` of the record.
        path: shown in messages.
        max_pixels: more than this, by the header, is refused before decoding.

    Raises:
        BadRecordError: not an image, or too large.
    """
    if isinstance(raw, str):
        path = path or raw
        raw = read_bytes(raw, where=where, shown=path)
    with _quiet():
        return _retry_without_text(
            raw, lambda content: _open(io.BytesIO(content), where, path, max_pixels)
        )


def decode_image(
    raw: bytes,
    *,
    where: str,
    path: str,
    max_pixels: int = MAX_IMAGE_PIXELS,
    decode: DecodeConfig,
    fit: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
) -> DecodedImage:
    """Decode an image file to RGB.

    Args:
        raw: the file.
        where: ``file:line`` of the record.
        path: shown in messages.
        max_pixels: more than this, by the header, is refused before decoding.
        decode: the rule.
        fit: tells the least (width, height) that is needed of an image of this (width, height) as
            shown. None: all of it. The fast backend decodes no more than that.

    Raises:
        BadRecordError: no image, truncated, broken or too large.
        ConfigError: the fast backend is not installed.
    """

    def attempt(content: bytes) -> DecodedImage:
        image = _open(io.BytesIO(content), where, path, max_pixels)
        if decode.image_backend == "fast" and image.format in ("JPEG", "MPO"):
            found = _decode_fast(image, content, decode, fit)
            if found is not None:
                return found
        with_scaled_transparency(image, content)
        # A PNG's metadata may stand behind its pixels, a TIFF's is gone once it is decoded.
        geometry = None if image.format == "PNG" else _geometry(image, decode)
        rgb = _to_rgb(image, where, path, decode)
        return DecodedImage(pixels=rgb, geometry=geometry or _geometry(image, decode))

    with _quiet():
        return _retry_without_text(raw, attempt)


def _decode_fast(
    image: Image.Image,
    raw: bytes,
    decode: DecodeConfig,
    fit: Callable[[tuple[int, int]], tuple[int, int]] | None,
) -> DecodedImage | None:
    geometry = _geometry(image, decode)
    least = fit(geometry.size) if fit else geometry.size
    least = turned_size(least, geometry.orientation)
    pixels = fast_jpeg.decode(raw, image.mode, geometry.stored_size, least)
    if pixels is None:
        return None
    found = DecodedImage(pixels=pixels, geometry=geometry)
    if geometry.orientation == UPRIGHT:
        return found
    return DecodedImage(pixels=turned(found.rgb, geometry.orientation), geometry=geometry)


def load_image(
    path: str,
    *,
    where: str = "",
    max_pixels: int = MAX_IMAGE_PIXELS,
    decode: DecodeConfig = _AS_SHOWN,
    shown: str = "",
) -> Image.Image:
    """Read a file of any mode Pillow opens as RGB.

    Args:
        path: on disk, in an archive, or a URL (``storage``).
        where: ``file:line`` of the record.
        max_pixels: more than this, by the header, is refused before decoding.
        decode: the rule; by default that of new fine-tunes.
        shown: what messages call the file; the path by default.

    Raises:
        BadRecordError: missing, unreadable, no image, truncated or too large.
    """
    raw = read_bytes(path, where=where, shown=shown)
    return decode_image(
        raw, where=where, path=shown or path, max_pixels=max_pixels, decode=decode
    ).rgb


def read_geometry(
    path: str, *, where: str, max_pixels: int = MAX_IMAGE_PIXELS, decode: DecodeConfig
) -> ImageGeometry:
    """An image file's size and orientation, by its header.

    Raises:
        BadRecordError: missing, unreadable, no image or too large.
    """
    with open_file(path, where=where) as file, _quiet():
        try:
            return _geometry(_open(file, where, path, max_pixels), decode)
        except _TextTooLongError:
            file.seek(0)
            content = without_text(file.read())
            return _geometry(_open(io.BytesIO(content), where, path, max_pixels), decode)


def to_rgb(
    image: Image.Image, *, where: str = "", path: str = "", decode: DecodeConfig = _AS_SHOWN
) -> Image.Image:
    """Decode and convert to RGB; 16-bit and float greys are scaled, not clipped.

    Args:
        image: opened; of an animation the frame it stands at.
        where, path: shown in messages.
        decode: the rule; by default that of new fine-tunes.

    Raises:
        BadRecordError: the file is truncated or broken.
    """
    try:
        with _quiet():
            return _to_rgb(image, where, path, decode)
    except _TextTooLongError as err:
        raise _broken(_told(err), path, where) from err


def _to_rgb(image: Image.Image, where: str, path: str, decode: DecodeConfig) -> Image.Image:
    try:
        image.load()
        if decode.apply_exif_orientation:
            image = turned(image, _orientation(image))
        if image.mode in DEEP_GREYS:
            return deep_grey_to_rgb(image, decode.rgba_background_color)
        if decode.rgba_background_color is not None and image.has_transparency_data:
            return on_ground(image, decode.rgba_background_color)
        return image if image.mode == "RGB" else image.convert("RGB")
    except DECODE_ERRORS as err:
        told = _told(err)
        if "MAX_TEXT" in told:
            raise _TextTooLongError(told) from err
        raise _broken(told, path, where) from err


def _broken(told: str, path: str, where: str) -> BadRecordError:
    code = "TRUNCATED_IMAGE" if "truncated" in told.lower() else "BROKEN_IMAGE"
    return BadRecordError(code, f"{path} cannot be decoded: {told}", where=where)


# ---- opening ------------------------------------------------------------------------------------


class _TextTooLongError(Exception):
    """A PNG's text is longer than Pillow reads; its pixels may be as good as any."""


def _retry_without_text(raw: bytes, attempt: Callable[[bytes], T]) -> T:
    """A PNG beyond Pillow's limits on text is read without it; the limits stay as they are."""
    try:
        return attempt(raw)
    except _TextTooLongError:
        return attempt(without_text(raw))


def _open(file: BinaryIO, where: str, path: str, max_pixels: int) -> Image.Image:
    try:
        image = open_raster(file)
    except UnidentifiedImageError as err:
        file.seek(0)
        kind = kind_of(file.read(KIND_BYTES))
        raise BadRecordError(
            "NOT_AN_IMAGE", f"{path} is no image that can be read: it is {kind}", where=where
        ) from err
    except DECODE_ERRORS as err:
        told = _told(err)
        if "MAX_TEXT" in told:
            raise _TextTooLongError(told) from err
        raise BadRecordError("NOT_AN_IMAGE", f"{path} is no image: {told}", where=where) from err
    width, height = image.size
    if width * height > max_pixels:
        raise BadRecordError(
            "TOO_MANY_PIXELS",
            f"{path} has {width} x {height} = {width * height} pixels, more than {max_pixels}",
            where=where,
            fix="Shrink it or raise --max_image_pixels.",
        )
    if not width or not height:
        raise BadRecordError("BROKEN_IMAGE", f"{path} is {width} x {height} pixels", where=where)
    return image


def _told(err: BaseException) -> str:
    """An error's text without addresses of objects, which are others in every run."""
    return _ADDRESS.sub("", str(err)).strip() or type(err).__name__


def _geometry(image: Image.Image, decode: DecodeConfig) -> ImageGeometry:
    """Of an image that is opened, and not yet decoded."""
    orientation = _orientation(image)
    if image.format == "TIFF":
        # Pillow turns these itself while it decodes, whatever the rule, and tells the turned size.
        return ImageGeometry(
            stored_size=turned_size(image.size, orientation), orientation=orientation
        )
    if not decode.apply_exif_orientation:
        orientation = UPRIGHT
    return ImageGeometry(stored_size=image.size, orientation=orientation)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 for metadata that is damaged, as viewers do."""
    try:
        # The class's own: a PNG's decodes the image to look for metadata behind it.
        value = Image.Image.getexif(image).get(_ORIENTATION, UPRIGHT)
    except DECODE_ERRORS:
        return UPRIGHT
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT
