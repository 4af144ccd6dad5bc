"""What may be uploaded and asked; everything else becomes one sentence on the page."""

from __future__ import annotations

import math
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from internvl_chat.chat.limits import UploadLimits
from internvl_chat.data import images, video
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import ConfigError
from internvl_chat.web.conversation import MediaItem, QuestionError

MAX_FRAMES: Final = 32
"""Of a video, in one question."""
# Python's table of types lacks these on some systems.
_VIDEOS: Final = {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
_PROBLEMS: Final = {
    "BROKEN_IMAGE": "{name} is damaged and cannot be decoded.",
    "TRUNCATED_IMAGE": "{name} is cut off: a part of the image is missing.",
    "EMPTY_VIDEO": "{name} holds no frame.",
    "BROKEN_VIDEO": "{name} is no video that can be decoded, or has no frames.",
    "NOT_A_VIDEO": "{name} is no video that can be decoded, or has no frames.",
    "MISSING_FILE": "{name} is no longer on the server. Upload it again.",
}


@dataclass(frozen=True, kw_only=True)
class QuestionLimits(UploadLimits):
    """Bounds of one question."""

    max_upload_mb: int = 20
    """Size of a file in MiB; checked while it is being received."""
    max_frame_pixels: int = 9_000_000
    """Of a video; a frame of 4K has 8.3 million."""
    max_files: int = 16
    max_question_chars: int = 20_000


def whole(value: object, name: str) -> int:
    """A number that a client sent, rounded down.

    Raises:
        QuestionError: anything else that it may send, NaN included.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise QuestionError(f"{name} is {value}, want a whole number.")
    return int(value)


def look_at_uploads(
    paths: list[str], *, root: Path, num_frames: int, limits: QuestionLimits
) -> tuple[MediaItem, ...]:
    """Check every file that came with a question.

    Args:
        paths: as Gradio handed them over.
        root: the folder of uploads; no other file is opened.
        num_frames: frames that are taken of a video.

    Raises:
        QuestionError: too many files, a file from elsewhere, damaged or too large.
    """
    if len(paths) > limits.max_files:
        raise QuestionError(f"{len(paths)} files at once, at most {limits.max_files} are taken.")
    if not 1 <= num_frames <= MAX_FRAMES:
        raise QuestionError(f"{num_frames} frames of a video, want 1 to {MAX_FRAMES}.")
    for path in paths:
        # Gradio checks this as well; this line does not depend on its version.
        if not Path(path).resolve().is_relative_to(root.resolve()):
            raise QuestionError(f"{Path(path).name} was not uploaded here.")
    return tuple(_look_at(path, num_frames, limits) for path in paths)


def check_question(typed: str, limits: QuestionLimits) -> None:
    """Raises:
    QuestionError: the text is longer than any context.
    """
    if len(typed) > limits.max_question_chars:
        raise QuestionError(
            f"The question has {len(typed)} characters; at most {limits.max_question_chars} "
            "are read."
        )


def _look_at(path: str, num_frames: int, limits: QuestionLimits) -> MediaItem:
    name = Path(path).name
    try:
        if _is_video(path, limits):
            _decode_a_frame(path, limits)
            return MediaItem(path=path, num_frames=num_frames)
        images.load_image(path, max_pixels=limits.max_upload_pixels, shown=name)
        return MediaItem(path=path)
    except BadRecordError as err:
        raise QuestionError(describe(err, name, limits)) from err


def describe(err: BadRecordError, name: str, limits: QuestionLimits | None = None) -> str:
    """The problem with a file without the server's paths in it."""
    if err.code == "TOO_MANY_PIXELS":
        most = (limits or QuestionLimits()).max_upload_pixels // 1_000_000
        return f"{name} has too many pixels: at most {most} million are decoded. Shrink it."
    if err.code == "NOT_AN_IMAGE":
        kind = err.problem.partition(": it is ")[2]
        return f"{name} is no image that can be read{f': it is {kind}' if kind else ''}."
    return _PROBLEMS.get(err.code, "{name} cannot be used.").format(name=name)


def _is_video(path: str, limits: QuestionLimits) -> bool:
    suffix = Path(path).suffix.lower()
    if suffix != ".gif":
        guessed, _ = mimetypes.guess_type(path)
        return suffix in _VIDEOS or (guessed or "").startswith("video/")
    try:
        opened = video.open_video(path, where=path, max_pixels=limits.max_upload_pixels)
    except BadRecordError as err:
        if err.code == "NOT_A_VIDEO":  # an image of another kind by this name
            return False
        raise
    return opened.num_frames > 1


def _decode_a_frame(path: str, limits: QuestionLimits) -> None:
    try:
        opened = video.open_video(path, where=path, max_pixels=limits.max_frame_pixels)
        opened.frames([0])
    except ConfigError as err:
        raise QuestionError(
            "This server reads no video files: neither decord nor PyAV is there."
        ) from err
    except BadRecordError as err:
        if err.code != "TOO_MANY_PIXELS":
            raise
        size = re.search(r"\d+ x \d+", err.problem)
        raise QuestionError(
            f"{Path(path).name} has frames of {size[0] if size else 'too many'} pixels, at most "
            f"{limits.max_frame_pixels // 1_000_000} million are decoded. Shrink it."
        ) from err
