"""Files of a record: what can be known without decoding them, and what decoding shows."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from internvl_chat.config import DecodeConfig, MediaConfig
from internvl_chat.data.images import decode_image, open_image, read_geometry
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.orientation import turned_size
from internvl_chat.data.schema import BadRecordError, Record, Size
from internvl_chat.data.storage import exists, read_bytes, resolve_path
from internvl_chat.data.tiles import count_tiles
from internvl_chat.data.video import Video, choose_frames, open_video

_SMALL_BYTES: Final = 512
"""So small a file is seldom an image: its header is read even where nothing is decoded."""
_KEPT: Final = 4096
_SAME_FORMAT: Final = {"MPO": "JPEG", "DIB": "BMP", "JPEG2000": "JPEG2000"}
_VIDEO_BRANDS: Final = (
    b"isom",
    b"iso2",
    b"iso5",
    b"iso6",
    b"mp4",
    b"avc1",
    b"M4V",
    b"qt  ",
    b"3gp",
)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a decoded image file is."""

    size: tuple[int, int]
    """(width, height) as stored."""
    orientation: int
    """EXIF's; 1 is as stored."""
    has_alpha: bool
    true_format: str

    def fits(self, stated: Size) -> bool:
        """Whether a stated (width, height) is the image's, turned or not where EXIF turns it."""
        if tuple(stated) == self.size:
            return True
        return tuple(stated) == turned_size(self.size, self.orientation)

    def shown_size(self, decode: DecodeConfig) -> tuple[int, int]:
        """(width, height) as a run with this rule sees it."""
        return (
            turned_size(self.size, self.orientation) if decode.apply_exif_orientation else self.size
        )


def image_facts(path: str, *, where: str, max_pixels: int) -> ImageFacts:
    """Read and decode an image file.

    Raises:
        BadRecordError: as training would.
    """
    raw = read_bytes(path, where=where)
    try:
        image = open_image(raw, where=where, path=path, max_pixels=max_pixels)
    except BadRecordError as err:
        if err.code == "NOT_AN_IMAGE" and _looks_like_video(raw):
            raise BadRecordError(
                "VIDEO_AS_IMAGE", f'{path} is a video and stands under "image"', where=where
            ) from err
        raise
    decoded = decode_image(
        raw, where=where, path=path, max_pixels=max_pixels, decode=DecodeConfig.as_shown()
    )
    return ImageFacts(
        size=decoded.geometry.stored_size,
        orientation=decoded.geometry.orientation,
        has_alpha="A" in image.getbands() or "transparency" in image.info,
        true_format=image.format or "",
    )


def _looks_like_video(raw: bytes) -> bool:
    if raw[4:8] == b"ftyp":
        return raw[8:12].startswith(_VIDEO_BRANDS)
    return raw.startswith(b"\x1a\x45\xdf\xa3") or (raw[:4] == b"RIFF" and raw[8:12] == b"AVI ")


def look_at_file(path: str, *, where: str, max_pixels: int, is_video: bool) -> None:
    """See that a file is there and not empty, without decoding it.

    Raises:
        BadRecordError: as training would.
    """
    try:
        status = os.stat(path)
    except OSError:
        if is_video:
            open_video(path, where=where, max_pixels=max_pixels)
        if not exists(path):  # in an archive or a store either
            read_bytes(path, where=where)  # raises what training would
        return
    if stat.S_ISDIR(status.st_mode):
        if is_video:
            open_video(path, where=where, max_pixels=max_pixels)
        else:
            read_bytes(path, where=where)
    elif not stat.S_ISREG(status.st_mode):
        raise BadRecordError("UNREADABLE_FILE", f"{path} is no regular file", where=where)
    elif status.st_size < _SMALL_BYTES and not is_video:
        open_image(read_bytes(path, where=where), where=where, path=path, max_pixels=max_pixels)
    elif status.st_size == 0:
        open_video(path, where=where, max_pixels=max_pixels)


class MediaChecker:
    """Checks the files of one dataset's records; facts of images seen lately are kept.

    Args:
        spec: whose root the paths are relative to.
        media: limits, frames and tiles.
        decode: open and decode files.
    """

    def __init__(self, spec: DatasetSpec, media: MediaConfig, *, decode: bool) -> None:
        self.spec, self.media, self.decode = spec, media, decode
        self._facts: OrderedDict[str, ImageFacts] = OrderedDict()

    def path(self, name: str, where: str) -> str:
        """Where a file lies.

        Raises:
            BadRecordError: outside root, or no path at all.
        """
        if "\0" in name:
            raise BadRecordError("UNREADABLE_FILE", f"{name!r} holds a NUL character", where=where)
        return resolve_path(self.spec.root, name, where=where, strict=self.media.strict_root)

    def images(
        self, names: Sequence[str], where: str
    ) -> tuple[list[BadRecordError], list[ImageFacts | None]]:
        """(problems, what each image is; None where that is not known)."""
        problems: list[BadRecordError] = []
        facts: list[ImageFacts | None] = []
        for name in dict.fromkeys(names) if not self.decode else names:
            try:
                facts.append(self._image(name, where))
            except BadRecordError as err:
                facts.append(None)
                if all(str(err) != str(other) for other in problems):
                    problems.append(_with_hint(err, name))
        return problems, facts

    def _image(self, name: str, where: str) -> ImageFacts | None:
        path, limit = self.path(name, where), self.media.max_image_pixels
        if not self.decode:
            look_at_file(path, where=where, max_pixels=limit, is_video=False)
            return None
        found = self._facts.get(path)
        if found is None:
            found = image_facts(path, where=where, max_pixels=limit)
            if len(self._facts) >= _KEPT:
                self._facts.popitem(last=False)
            self._facts[path] = found
        return found

    def video(self, name: str, record: Record | None, where: str) -> int | None:
        """How many frames are taken of the record's video; None where that is not known.

        Raises:
            BadRecordError: as training would.
        """
        path, limit = self.path(name, where), self.media.max_image_pixels
        if not self.decode:
            look_at_file(path, where=where, max_pixels=limit, is_video=True)
            return None
        video = open_video(path, where=where, max_pixels=limit, backend=self.media.video_backend)
        chosen = self.chosen_frames(video, record, where)
        video.frames(chosen)
        return len(chosen)

    def num_frames(self, record: Record, where: str) -> int:
        """As :meth:`video`, without decoding the frames."""
        assert record.video is not None
        path = self.path(record.video, where)
        limit, backend = self.media.max_image_pixels, self.media.video_backend
        video = open_video(path, where=where, max_pixels=limit, backend=backend)
        return len(self.chosen_frames(video, record, where))

    def chosen_frames(self, video: Video, record: Record | None, where: str) -> list[int]:
        """Frame numbers as evaluation takes them."""
        return choose_frames(
            video,
            clip=record.clip if record else None,
            min_num_frame=self.media.min_num_frame,
            max_num_frame=self.media.max_num_frame,
            rng=None,
            where=where,
        )

    def header_size(self, name: str, where: str) -> Size:
        """(width, height) by the file's header."""
        path, decode = self.path(name, where), self.media.images.decode
        limit = self.media.max_image_pixels
        return read_geometry(path, where=where, max_pixels=limit, decode=decode).size

    def image_findings(
        self, record: Record, facts: Sequence[ImageFacts | None], *, has_boxes: bool
    ) -> list[tuple[str, str, str | None]]:
        """(code, message, mend) of what decoding showed about good images."""
        found: list[tuple[str, str, str | None]] = []
        budget = self.media.images.tile_budget(len(record.images), self.spec.max_dynamic_patch)
        for number, (name, fact) in enumerate(zip(record.images, facts, strict=True)):
            if fact is None:
                continue
            ending = _other_ending(name, fact.true_format)
            if ending is not None:
                found.append(("EXTENSION", *ending))
            if record.sizes is not None and not fact.fits(record.sizes[number]):
                found.append(self._size_finding(name, record.sizes[number], fact, budget))
            if has_boxes and fact.has_alpha:
                found.append(("ALPHA_WITH_BOXES", f"{name} has transparency", None))
            if has_boxes and fact.orientation != 1:
                message = f"{name} is turned by EXIF orientation {fact.orientation}"
                found.append(("EXIF_WITH_BOXES", message, None))
        return list(dict.fromkeys(found))

    def _size_finding(
        self, name: str, stated: Size, fact: ImageFacts, budget: int
    ) -> tuple[str, str, str | None]:
        shown, size = f"{stated[0]:g} x {stated[1]:g}", fact.shown_size(self.media.images.decode)
        message = f"the record states {shown}, {name} is {size[0]} x {size[1]}"
        mend = f'Write "width": {size[0]}, "height": {size[1]}.'
        images = self.media.images
        if images.dynamic_image_size:
            planned = count_tiles(stated, images, max_tiles=budget)
            actual = count_tiles(size, images, max_tiles=budget)
            if planned != actual:
                return "SIZE_MISMATCH", f"{message}: {planned} tiles planned, {actual} made", mend
        return "SIZE_DIFFERS", message, mend


def _with_hint(err: BadRecordError, name: str) -> BadRecordError:
    """A file that is not found, with what its name tells about the reason."""
    hint = ""
    if "://" in name:
        hint = "Download the file and write its path."
    elif "\\" in name:
        hint = 'Write "/" between folders.'
    elif name != name.strip():
        hint = "Remove the blank at the end of the path."
    if err.code != "MISSING_FILE" or not hint:
        return err
    return BadRecordError(err.code, err.problem, where=err.where, fix=hint)


def _other_ending(name: str, true_format: str) -> tuple[str, str] | None:
    """(message, mend) if the name's ending belongs to another format."""
    ending = Path(name).suffix.lower()
    claimed = Image.registered_extensions().get(ending)
    if claimed is None or not true_format:
        return None
    if _SAME_FORMAT.get(claimed, claimed) == _SAME_FORMAT.get(true_format, true_format):
        return None
    return f"{name} is a {true_format} file", f"Name it .{_ending_of(true_format)}."


def _ending_of(image_format: str) -> str:
    common = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}
    return common.get(image_format, image_format.lower())
