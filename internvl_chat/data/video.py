"""Videos as lists of frames: video files, animated images and folders of images.

Time is the frames' own: what a container states for each of them, a GIF's durations. A folder of
images has none. A frame is the one asked for or an error, never a neighbour:
``videos/readers.py``.
"""

from __future__ import annotations

import os
import random
import re
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from PIL import Image

from internvl_chat.config import (
    MAX_IMAGE_PIXELS,
    DecodeConfig,
    VideoBackend,
    default_video_backend,
)
from internvl_chat.data.file_kinds import KIND_BYTES, kind_of
from internvl_chat.data.images import load_image
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.storage import is_url, read_bytes
from internvl_chat.data.videos.animation import Animation, is_animation
from internvl_chat.data.videos.process import VideoFile
from internvl_chat.data.videos.times import FrameTimes, evenly_spread, spread_in_time
from internvl_chat.model.constants import IMAGE_TAG, VIDEO_TAG

_IMAGE_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_STILLS: Final = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"BM", "a BMP image"),
)
_AS_SHOWN: Final = DecodeConfig.as_shown()


class Video(Protocol):
    """Something with frames."""

    num_frames: int
    frames_per_second: float | None
    """On average; None where time is unknown."""
    times: FrameTimes | None
    """Of every frame; None where the file does not say."""

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """RGB images of these frames, in this order."""


def open_video(
    path: str,
    *,
    where: str,
    max_pixels: int = MAX_IMAGE_PIXELS,
    backend: VideoBackend | None = None,
    decode: DecodeConfig = _AS_SHOWN,
) -> Video:
    """Open a video file, an animated GIF, WebP or PNG, or a folder of images (natural order).

    Args:
        path: a file or folder on disk, a file in an archive, or a URL. What it is decides its
            content, not its name.
        where: ``file:line``, for messages.
        max_pixels: frames with more are refused.
        backend: reads video files; None takes the one that is installed.
        decode: how the images of an animation or a folder become RGB.

    Raises:
        BadRecordError: missing, unreadable, damaged, no video, or without a frame.
        ConfigError: the backend is not installed.
    """
    place, copy = path, None
    try:
        if is_url(path) or not _is_on_disk(path):
            copy = tempfile.NamedTemporaryFile()  # noqa: SIM115 - lives as long as the video
            copy.write(read_bytes(path, where=where))
            copy.flush()
            place = copy.name
        mode = os.stat(place).st_mode
        if stat.S_ISDIR(mode):
            return _with_frames(_Folder(path, where, max_pixels, decode), path, where)
        if not stat.S_ISREG(mode):  # reading a pipe would wait for its other end
            problem = f"cannot read {path}: it is no file but a pipe, socket or device"
            raise BadRecordError("UNREADABLE_FILE", problem, where=where)
        with open(place, "rb") as file:
            head = file.read(KIND_BYTES)
            if is_animation(head):
                raw = head + file.read()
                animation = Animation(raw, path, where, max_pixels=max_pixels, decode=decode)
                return _with_frames(animation, path, where)
    except (OSError, ValueError) as err:  # a NUL in the name is a ValueError
        raise _unreadable(path, err, where) from err
    _refuse_other_kinds(path, head, where)
    video = VideoFile(
        place,
        shown=path,
        where=where,
        max_pixels=max_pixels,
        backend=backend or default_video_backend(),
        copy=copy,
    )
    return _with_frames(video, path, where)


def _is_on_disk(path: str) -> bool:
    """Whether no part of the path is a file, as an archive is."""
    try:
        os.stat(path)
    except NotADirectoryError:
        return False
    return True


def _with_frames(video: Video, path: str, where: str) -> Video:
    if video.num_frames < 1:
        raise BadRecordError("EMPTY_VIDEO", f"{path} holds no frame", where=where)
    return video


def _unreadable(path: str, err: OSError | ValueError, where: str) -> BadRecordError:
    if isinstance(err, FileNotFoundError):
        return BadRecordError("MISSING_FILE", f"no such file: {path}", where=where)
    reason = (err.strerror if isinstance(err, OSError) else None) or err
    return BadRecordError("UNREADABLE_FILE", f"cannot read {path}: {reason}", where=where)


def _refuse_other_kinds(path: str, head: bytes, where: str) -> None:
    """Refuse what is no video by its first bytes.

    A list of other files, too (M3U8 and the like are text): FFmpeg would open what it names.

    Raises:
        BadRecordError: it is an image, a text, an archive, ...
    """
    still = next((kind for magic, kind in _STILLS if head.startswith(magic)), None)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        still = "a WebP image"
    kind = kind_of(head)
    if still is None and ("HEIC" in kind or "AVIF" in kind):
        still = kind
    if still is not None:
        problem, fix = f"{path} is no video: it is {still}", 'Name it as "image".'
    elif "video" in kind or kind.startswith(("of an unknown", "a RIFF file")):
        return
    else:
        problem, fix = f"{path} is no video: it is {kind}", None
    raise BadRecordError("NOT_A_VIDEO", problem, where=where, fix=fix)


def choose_frames(
    video: Video,
    *,
    clip: tuple[float, float] | None,
    min_num_frame: int,
    max_num_frame: int,
    rng: random.Random | None,
    where: str,
) -> list[int]:
    """Frame numbers, ascending, uniform in time.

    As many as there are, but at least ``min_num_frame`` (a short video repeats frames) and at most
    ``max_num_frame``. The stretch is cut in that many intervals: ``rng`` draws a frame of each,
    without one the middle is taken. Intervals are of frame numbers where these are as good as times
    (to half a frame), else of seconds; a stretch of no more frames than are wanted shows them all.

    Args:
        clip: start and end in seconds; the frames on the screen at both are part of it.
        rng: of training.

    Raises:
        BadRecordError: the clip lies outside the video, or time is unknown.
    """
    times, rate = video.times, video.frames_per_second
    if times is not None and times.is_even:
        times = None  # numbers are exact, and what runs drew before there were times
    first, last = 0, video.num_frames - 1
    start, end = 0.0, times.end if times else 0.0
    if clip is not None:
        if times is not None:
            start, end = clip[0], min(clip[1], end)
            first, last = times.shown_at(start), times.shown_at(end)
        elif rate:
            beyond = last + 1  # products may be infinite
            first, last = int(min(clip[0] * rate, beyond)), int(min(clip[1] * rate, last))
        else:
            raise BadRecordError(
                "CLIP", '"clip" needs a video with a frame rate', where=where, fix="Remove it."
            )
        if first > last or start > end:
            seconds = times.end if times else video.num_frames / (rate or 1)
            raise BadRecordError(
                "CLIP", f"clip {list(clip)} lies outside the video of {seconds:.1f} s", where=where
            )
    available = last - first + 1
    count = min(max(available, min_num_frame), max_num_frame)
    if times is None or available <= count:
        return evenly_spread(first, last, count, rng)
    return spread_in_time(times, start, end, count, rng)


def expand_video_tag(question: str, num_frames: int) -> str:
    """Put ``Frame1: <image>\\nFrame2: <image>\\n…`` where ``<video>`` stands."""
    frames = "".join(f"Frame{number}: {IMAGE_TAG}\n" for number in range(1, num_frames + 1))
    return question.replace(f"{VIDEO_TAG}\n", frames).replace(VIDEO_TAG, frames)


class _Folder:
    frames_per_second: float | None = None
    times: FrameTimes | None = None

    def __init__(self, path: str, where: str, max_pixels: int, decode: DecodeConfig) -> None:
        self._where, self._max_pixels, self._decode = where, max_pixels, decode
        names = [name for name in os.listdir(path) if _is_image(name)]
        self._paths = [os.path.join(path, name) for name in sorted(names, key=_natural)]
        self.num_frames = len(self._paths)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        return [
            load_image(
                self._paths[i],
                where=self._where,
                max_pixels=self._max_pixels,
                decode=self._decode,
            )
            for i in indices
        ]


def _is_image(name: str) -> bool:
    """Hidden files are none: macOS puts a ``._x.jpg`` beside each ``x.jpg`` that it copies."""
    return not name.startswith(".") and Path(name).suffix.lower() in _IMAGE_SUFFIXES


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which frame2 comes before frame10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
