"""Images inside records (data URLs, base64, structs of bytes), written out and read back."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from internvl_chat.data.bad_record import BadRecordError
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.data_urls import (
    DataUrlError,
    forgiving_base64,
    is_data_url,
    percent_decoded,
    read_data_url,
)
from internvl_chat.data.images import DECODE_ERRORS, open_raster
from internvl_chat.data.storage import open_file, read_bytes
from internvl_chat.files import written_aside

_ORIENTATION_TAG: Final = 0x0112
_TURNED: Final = (5, 6, 7, 8)
_ENDINGS: Final = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tiff",
    "PPM": ".ppm",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
}
_TYPES: Final = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".tiff": "image/tiff",
    ".tif": "image/tiff",
    ".avif": "image/avif",
}


@dataclass(frozen=True)
class EmbeddedImage:
    """An image whose bytes are in the record."""

    raw: bytes


def image_reference(value: Any) -> str | EmbeddedImage:
    """A path, or the bytes of an image, out of what formats put in an image's place.

    Understands a path, ``file:`` and ``data:`` URLs, ``bytes``, ``{"bytes": ..., "path": ...}``
    (bytes as they are or in base64) and ``{"url": ...}``.

    Raises:
        UnfitRecordError: none of these, or an image on the net: nothing is downloaded.
    """
    if isinstance(value, Mapping):
        raw = value.get("bytes")
        if raw:
            return image_reference(raw) if isinstance(raw, bytes) else _from_base64(str(raw))
        path = value.get("path") or value.get("url") or value.get("image")
        if path is None:
            raise UnfitRecordError("an image with neither bytes nor path")
        return image_reference(path)
    if isinstance(value, bytes):
        return EmbeddedImage(value)
    if not isinstance(value, str) or not value:
        raise UnfitRecordError(f"an image that is a {type(value).__name__}, not a path")
    if is_data_url(value):
        return _from_data_url(value)
    scheme = value.partition("://")[0].lower() if "://" in value[:12] else ""
    if scheme in ("http", "https", "s3", "gs", "ftp"):
        raise UnfitRecordError(f"an image on the net ({scheme}:); download it and name its path")
    return _path_of_url(value) if scheme == "file" else value


def _path_of_url(url: str) -> str:
    try:
        return unquote(urlsplit(url).path)
    except ValueError as err:  # a bracket where a host would be
        raise UnfitRecordError("a file: URL without a path") from err


def _from_data_url(url: str) -> EmbeddedImage:
    try:
        return EmbeddedImage(read_data_url(url).raw)
    except DataUrlError as err:
        raise UnfitRecordError("an image in a data: URL that is damaged") from err


def _from_base64(text: str) -> EmbeddedImage:
    try:
        # Percent signs and line breaks are what copying does to it.
        return EmbeddedImage(forgiving_base64(percent_decoded(text).decode("latin-1")))
    except DataUrlError as err:
        raise UnfitRecordError("an image whose base64 is damaged") from err


def data_url(raw: bytes, path: str) -> str:
    """An image as a ``data:`` URL; its type goes by the bytes, else by the name."""
    found = _identify(raw)
    ending = found[0] if found else Path(path).suffix.lower()
    media_type = _TYPES.get(ending, "application/octet-stream")
    return f"data:{media_type};base64,{base64.b64encode(raw).decode('ascii')}"


def _identify(raw: bytes) -> tuple[str, tuple[int, int]] | None:
    """(ending, (width, height)) by the header; None if Pillow knows no such image."""
    try:
        # A size that Pillow warns or refuses at is for training's own limit to judge.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_raster(io.BytesIO(raw))
    except DECODE_ERRORS:
        return None
    return _ENDINGS.get(image.format or "", f".{(image.format or 'img').lower()}"), image.size


def shown_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a file as a viewer shows it, turned by its EXIF orientation.

    Returns:
        None if no image can be opened there.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with (
                open_file(os.path.abspath(path), where="") as file,
                open_raster(file) as image,
            ):
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION_TAG) in _TURNED
    except (BadRecordError, *DECODE_ERRORS):
        return None
    return (height, width) if turned else (width, height)


class ImageStore:
    """The folder that embedded images are written to, each once, named by its content.

    Args:
        folder: made when the first image is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_written = 0
        self.num_shared = 0

    def write(self, image: EmbeddedImage) -> tuple[str, tuple[int, int]]:
        """Write an image unless it is there.

        Returns:
            Its path relative to the folder that holds :attr:`folder`, and (width, height).

        Raises:
            UnfitRecordError: the bytes are no image.
        """
        found = _identify(image.raw)
        if found is None:
            raise UnfitRecordError("embedded bytes that are no image")
        ending, size = found
        name = hashlib.blake2b(image.raw, digest_size=10).hexdigest()
        relative = f"{self.folder.name}/{name[:2]}/{name}{ending}"
        path = self.folder.parent / relative
        if path.exists():
            self.num_shared += 1
            return relative, size
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_bytes(image.raw)
        self.num_written += 1
        return relative, size


class ImageRoot:
    """Where images named by a path are looked for, to say how many are missing.

    Args:
        root: folder that paths are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.abspath(root)
        self.num_named = 0

    def check(self, path: str, notes: Notes) -> str:
        """The path as it goes into the record: relative to the root where it lies in it."""
        self.num_named += 1
        joined = os.path.normpath(os.path.join(self._root, path))
        inside = joined.startswith(self._root.rstrip(os.sep) + os.sep)
        if not inside:
            notes.changes["paths outside the root, which training refuses (give --root)"] += 1
        elif os.path.isabs(path):
            path = os.path.relpath(joined, self._root)
            notes.changes["absolute paths made relative to the root"] += 1
        if not os.path.exists(joined):
            notes.changes["named files that do not exist below the root"] += 1
        return path

    def size(self, path: str) -> tuple[int, int] | None:
        """As :func:`shown_size`."""
        return shown_size(Path(self._root, path))

    def read(self, path: str) -> bytes:
        """The bytes of an image.

        Raises:
            UnfitRecordError: it cannot be read.
        """
        try:
            return read_bytes(os.path.join(self._root, path), where="", shown=path)
        except BadRecordError as err:
            raise UnfitRecordError(f"an image that cannot be read ({err.problem})") from err
