"""Videos as lists of frames: files (decord), ``.gif`` files and folders of images."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from PIL import Image, ImageSequence

from internvl_chat.data.images import MAX_IMAGE_PIXELS, load_image, open_image, read_bytes, to_rgb
from internvl_chat.data.schema import BadRecordError
from internvl_chat.model.constants import IMAGE_TAG, VIDEO_TAG

_PICTURES: Final = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Video(Protocol):
    """Something with frames; ``frames_per_second`` is None where time is unknown."""

    num_frames: int
    frames_per_second: float | None

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """RGB images of these frames, in this order."""


def open_video(path: str, *, where: str, max_pixels: int = MAX_IMAGE_PIXELS) -> Video:
    """Open a video file, a ``.gif`` or a folder of images (natural order of names).

    Raises:
        BadRecordError: missing, unreadable, or without a frame.
    """
    if os.path.isdir(path):
        video: Video = _Folder(path, where, max_pixels)
    elif path.lower().endswith(".gif"):
        video = _Gif(path, where, max_pixels)
    else:
        video = _File(path, where)
    if video.num_frames < 1:
        raise BadRecordError("EMPTY_VIDEO", f"{path} holds no frame", where=where)
    return video


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
    without one the middle is taken.

    Raises:
        BadRecordError: the clip lies outside the video, or time is unknown.
    """
    first, last = 0, video.num_frames - 1
    if clip is not None:
        if not video.frames_per_second:
            raise BadRecordError(
                "CLIP", '"clip" needs a video with a frame rate', where=where, fix="Remove it."
            )
        first = int(clip[0] * video.frames_per_second)
        last = min(last, int(clip[1] * video.frames_per_second))
        if first > last:
            seconds = video.num_frames / video.frames_per_second
            raise BadRecordError(
                "CLIP", f"clip {list(clip)} lies outside the video of {seconds:.1f} s", where=where
            )
    available = last - first + 1
    count = min(max(available, min_num_frame), max_num_frame)
    chosen = []
    for number in range(count):
        low = first + number * available // count
        high = max(low, first + (number + 1) * available // count - 1)
        chosen.append((low + high) // 2 if rng is None else rng.randint(low, high))
    return chosen


def expand_video_tag(question: str, num_frames: int) -> str:
    """Put ``Frame1: <image>\\nFrame2: <image>\\n…`` where ``<video>`` stands."""
    frames = "".join(f"Frame{number}: {IMAGE_TAG}\n" for number in range(1, num_frames + 1))
    return question.replace(f"{VIDEO_TAG}\n", frames).replace(VIDEO_TAG, frames)


class _Folder:
    frames_per_second: float | None = None

    def __init__(self, path: str, where: str, max_pixels: int) -> None:
        self._where, self._max_pixels = where, max_pixels
        try:
            names = [n for n in os.listdir(path) if Path(n).suffix.lower() in _PICTURES]
        except OSError as err:
            raise BadRecordError(
                "UNREADABLE_FILE", f"cannot list {path}: {err.strerror}", where=where
            ) from err
        self._paths = [os.path.join(path, name) for name in sorted(names, key=_natural)]
        self.num_frames = len(self._paths)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        return [
            load_image(self._paths[i], where=self._where, max_pixels=self._max_pixels)
            for i in indices
        ]


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which frame2 comes before frame10."""
    return [
        (0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part
    ]


class _Gif:
    def __init__(self, path: str, where: str, max_pixels: int) -> None:
        self._path, self._where = path, where
        raw = read_bytes(path, where=where)
        self._image = open_image(raw, where=where, path=path, max_pixels=max_pixels)
        self.num_frames = getattr(self._image, "n_frames", 1)
        milliseconds = self._image.info.get("duration", 0)
        self.frames_per_second: float | None = 1000 / milliseconds if milliseconds else None

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        wanted = set(indices)
        found = {
            number: to_rgb(frame.copy(), where=self._where, path=self._path)
            for number, frame in enumerate(ImageSequence.Iterator(self._image))
            if number in wanted
        }
        return [found[i] for i in indices]


class _File:
    def __init__(self, path: str, where: str) -> None:
        import decord  # heavy, and needed for video files only

        self._path, self._where, self._errors = path, where, decord.DECORDError
        if not os.path.exists(path):
            raise BadRecordError("MISSING_FILE", f"no such file: {path}", where=where)
        try:
            self._reader = decord.VideoReader(path, num_threads=1)
        except (decord.DECORDError, RuntimeError) as err:
            raise BadRecordError(
                "BROKEN_VIDEO", f"{path} cannot be opened: {_first_line(err)}", where=where
            ) from err
        self.num_frames = len(self._reader)
        self.frames_per_second: float | None = float(self._reader.get_avg_fps()) or None

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        try:
            batch = self._reader.get_batch(list(indices)).asnumpy()
        except (self._errors, RuntimeError) as err:
            raise BadRecordError(
                "BROKEN_VIDEO",
                f"{self._path} cannot be decoded: {_first_line(err)}",
                where=self._where,
            ) from err
        return [Image.fromarray(frame) for frame in batch]


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
