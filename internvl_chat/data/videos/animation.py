"""Animated GIF, WebP and PNG: how long each image stands, read from the file's own structure.

Pillow tells an image's duration only after it has decoded all before it, and takes what a cut file
still holds for the whole; both are read here without decoding a pixel.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageSequence

from internvl_chat.config import DecodeConfig
from internvl_chat.data.images import open_image, to_rgb
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.videos.times import FrameTimes

# Browsers and FFmpeg alike: what claims to be faster than that means "unset".
_SHORTEST_MS: Final = 20
_UNSET_MS: Final = 100

_DAMAGE: Final = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)
"""What Pillow raises while it looks for the next image of a damaged file, by experience."""

_WEBP_ANIMATED: Final = 0b10  # of the flags of a VP8X chunk


class CutOffError(ValueError):
    """The file ends within a block."""


def is_animation(head: bytes) -> bool:
    """Whether it is a GIF, of any number of images, or an animated WebP or PNG.

    Args:
        head: the file's first bytes, a few hundred.
    """
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return True
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return len(head) > 20 and bool(head[20] & _WEBP_ANIMATED)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and b"acTL" in head.split(b"IDAT")[0]


def frame_milliseconds(raw: bytes) -> list[int]:
    """How long each image of an animation stands; below 20 ms it is 100, as browsers have it.

    Raises:
        CutOffError: the file ends too early.
    """
    if raw[:3] == b"GIF":
        found = _gif(raw)
    elif raw[:4] == b"RIFF":
        found = _webp(raw)
    else:
        found = _png(raw)
    return [ms if ms >= _SHORTEST_MS else _UNSET_MS for ms in found]


def _gif(raw: bytes) -> list[int]:
    """Source: https://www.w3.org/Graphics/GIF/spec-gif89a.txt"""
    place = 13 + _colour_table(_byte(raw, 10))
    durations: list[int] = []
    pending = 0
    while True:
        # Many complete files lack the trailer; a file that ends between two blocks may be whole.
        kind = raw[place] if place < len(raw) else 0x3B
        if kind == 0x3B:
            return durations
        if kind == 0x21:
            if _byte(raw, place + 1) == 0xF9:
                pending = 10 * struct.unpack_from("<H", raw.ljust(place + 6, b"\0"), place + 4)[0]
            place = _after_sub_blocks(raw, place + 2)
        elif kind == 0x2C:
            place = _after_sub_blocks(raw, place + 11 + _colour_table(_byte(raw, place + 9)))
            durations.append(pending)
            pending = 0
        else:  # Pillow looks on for the next block as well
            place += 1


def _byte(raw: bytes, place: int) -> int:
    if place >= len(raw):
        raise CutOffError
    return raw[place]


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_sub_blocks(raw: bytes, place: int) -> int:
    while size := _byte(raw, place):
        place += 1 + size
    return place + 1


def _webp(raw: bytes) -> list[int]:
    """Source: https://developers.google.com/speed/webp/docs/riff_container"""
    durations: list[int] = []
    place = 12
    end = 8 + struct.unpack_from("<I", raw, 4)[0]
    if end > len(raw):
        raise CutOffError
    while place + 8 <= end:
        kind, size = raw[place : place + 4], struct.unpack_from("<I", raw, place + 4)[0]
        if kind == b"ANMF" and size >= 16:
            durations.append(int.from_bytes(raw[place + 20 : place + 23], "little"))
        place += 8 + size + size % 2
    return durations


def _png(raw: bytes) -> list[int]:
    """Source: https://www.w3.org/TR/png-3/#fcTL-chunk"""
    durations: list[int] = []
    place = 8
    while True:
        if place + 12 > len(raw):
            raise CutOffError
        size, kind = struct.unpack_from(">I4s", raw, place)
        if kind == b"IEND":
            return durations
        if kind == b"fcTL" and size >= 24 and place + 32 <= len(raw):
            number, per_second = struct.unpack_from(">HH", raw, place + 28)
            durations.append(1000 * number // (per_second or 100))
        place += 12 + size


class Animation:
    """The images of a GIF, an animated WebP or PNG, with their own durations."""

    def __init__(
        self, raw: bytes, path: str, where: str, *, max_pixels: int, decode: DecodeConfig
    ) -> None:
        self._path, self._where, self._decode = path, where, decode
        try:
            durations = frame_milliseconds(raw)
            self._image = open_image(raw, where=where, path=path, max_pixels=max_pixels)
            # A PNG may begin with a still for viewers that know no animation; others never show it.
            self._num_skipped = int(bool(self._image.info.get("default_image")))
            self.num_frames = int(getattr(self._image, "n_frames", 1)) - self._num_skipped
        except CutOffError as err:
            raise self._error(
                "TRUNCATED_IMAGE", "is cut off: a part of its last image is missing"
            ) from err
        except BadRecordError:
            raise
        except _DAMAGE as err:
            raise self._error("BROKEN_IMAGE", f"is damaged: {err}") from err
        if len(durations) != self.num_frames:
            if self.num_frames > 1 or len(durations) > 1:
                raise self._error(
                    "BROKEN_IMAGE",
                    f"is damaged: {len(durations)} images are stated, {self.num_frames} found",
                )
            durations = [_UNSET_MS]
        starts = [0.0]
        for milliseconds in durations:
            starts.append(starts[-1] + milliseconds / 1000)
        end = starts.pop()
        self.frames_per_second: float | None = _rate(durations)
        self.times: FrameTimes | None = FrameTimes(
            starts=starts, end=end, rate=self.frames_per_second
        )

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """RGB images of these frames, in this order."""
        first = self._num_skipped
        wanted, last = {first + i for i in indices}, first + max(indices, default=-1)
        found: dict[int, Image.Image] = {}
        try:
            for number, frame in enumerate(ImageSequence.Iterator(self._image)):
                if number in wanted:
                    found[number] = to_rgb(
                        frame.copy(), where=self._where, path=self._path, decode=self._decode
                    )
                if number >= last:
                    break
            return [found[first + i] for i in indices]
        except BadRecordError:
            raise
        except _DAMAGE as err:
            problem = f"cannot be decoded: {err}" if str(err) else "cannot be decoded"
            raise self._error("BROKEN_IMAGE", problem) from err

    def _error(self, code: str, problem: str) -> BadRecordError:
        return BadRecordError(code, f"{self._path} {problem}", where=self._where)


def _rate(durations: Sequence[int]) -> float:
    """Frames per second: exact where all stand equally long."""
    if len(set(durations)) == 1:
        return 1000 / durations[0]
    return 1000 * len(durations) / sum(durations)
