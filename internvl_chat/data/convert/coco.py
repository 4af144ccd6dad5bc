"""COCO's JSON (instances, captions) <-> records: boxes become questions about ``<ref>``.

The file is mapped, its annotations are decoded one by one; what is held grows with their number, a
few hundred bytes each, never with segmentations.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from internvl_chat.data.boxes import Box, box_element, tagged_boxes
from internvl_chat.data.convert.conversations import ChatTurn, Draft, OwnRecord, Row, read_own
from internvl_chat.data.convert.files import Progress, no_progress
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.errors import DatasetError
from internvl_chat.model.constants import IMAGE_TAG, REF_END_TOKEN, REF_START_TOKEN

GROUNDING_QUESTION = (
    "Please provide the bounding box coordinate of the region this sentence describes: "
    "<ref>{}</ref>"
)
CAPTION_QUESTION = "Provide a one-sentence caption for the provided image."

_IMAGE_KEYS = {"id", "file_name", "width", "height"}
_ANNOTATION_KEYS = {"id", "image_id", "category_id", "bbox", "caption", "iscrowd"}


class _Sections(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[Row] = []


@dataclass
class CocoFile:
    """What is read of a file."""

    image_table: dict[Any, Row] = field(default_factory=dict)
    """Image id -> ``file_name``, ``width``, ``height``."""
    boxes: dict[Any, list[tuple[str, Box]]] = field(default_factory=lambda: defaultdict(list))
    """Image id -> (category, box in 0-1)."""
    captions: dict[Any, list[str]] = field(default_factory=lambda: defaultdict(list))
    category_names: dict[Any, str] = field(default_factory=dict)
    annotation_boxes: dict[Any, tuple[Any, Box]] = field(default_factory=dict)
    """Annotation id -> (image id, box in 0-1); for RefCOCO."""


def read_coco(
    path: Path, notes: Notes, progress: Progress = no_progress, *, by_annotation: bool = False
) -> CocoFile:
    """Read ``instances_*.json`` or ``captions_*.json``.

    Args:
        by_annotation: fill ``annotation_boxes`` in place of ``boxes`` and ``captions``.

    Raises:
        DatasetError: it is no such file.
    """
    # Not closed by hand: parts of it are referred to until the last is decoded.
    text = _mapped(path)
    found = CocoFile()
    try:
        sections = msgspec.json.decode(text, type=_Sections)
        found.category_names = {one["id"]: str(one["name"]) for one in sections.categories}
        for raw in sections.images:
            image = msgspec.json.decode(raw)
            found.image_table[image["id"]] = {k: image[k] for k in ("file_name", "width", "height")}
            _count_left(image, _IMAGE_KEYS, "images", notes)
    except (msgspec.DecodeError, KeyError, TypeError) as err:
        raise DatasetError(
            f"is no COCO file of images and annotations ({err})", where=str(path)
        ) from err
    total = len(sections.annotations)
    for number, raw in enumerate(sections.annotations):
        if number % 4096 == 0:
            progress(number, total)
        where = f"{path}, annotation {number}"
        try:
            _add_annotation(raw, found, notes, by_annotation, where)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            notes.leave_record(where, "an annotation with a field missing or of the wrong type")
    progress(total, total)
    return found


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as err:
        raise DatasetError("is empty", where=str(path)) from err


def _add_annotation(
    raw: msgspec.Raw, found: CocoFile, notes: Notes, by_annotation: bool, where: str
) -> None:
    keys = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    _count_left(keys, _ANNOTATION_KEYS, "annotations", notes)
    one = {key: msgspec.json.decode(keys[key]) for key in _ANNOTATION_KEYS if key in keys}
    image_id = one["image_id"]
    image = found.image_table.get(image_id)
    if image is None:
        notes.leave_record(where, "an annotation of an image that is not in the file")
    elif "caption" in one:
        found.captions[image_id].append(str(one["caption"]))
    elif one.get("iscrowd"):
        notes.left["boxes of crowds"] += 1
    elif "bbox" in one:
        box = unit_box(one["bbox"], image["width"], image["height"])
        if by_annotation:
            found.annotation_boxes[one["id"]] = (image_id, box)
        else:
            name = found.category_names.get(one["category_id"])
            if name is None:
                notes.leave_record(where, "an annotation of an unknown category")
            else:
                found.boxes[image_id].append((name, box))


def _count_left(keys: Mapping[str, Any], used: set[str], section: str, notes: Notes) -> None:
    for key in keys:
        if key not in used:
            notes.left[f"{section}.{key}"] += 1


def unit_box(bbox: Any, width: float, height: float) -> Box:
    """COCO's ``[x, y, width, height]`` in pixels -> x1, y1, x2, y2 in 0-1."""
    x, y, w, h = (float(v) for v in bbox)
    return x / width, y / height, (x + w) / width, (y + h) / height


def coco_drafts(
    found: CocoFile, notes: Notes, *, question: str | None
) -> Iterator[tuple[Draft, str]]:
    """A record an image with a round for each category; a record for each caption.

    Args:
        question: in place of the usual one; ``{}`` stands for the category.
    """
    for image_id, image in found.image_table.items():
        where = f"image {image_id}"
        boxes, captions = found.boxes.get(image_id), found.captions.get(image_id)
        if not boxes and not captions:
            notes.changes["images without boxes or captions"] += 1
            continue
        rest = {"width": image["width"], "height": image["height"]}
        for number, caption in enumerate(captions or ()):
            turns = [
                ChatTurn("human", question or CAPTION_QUESTION),
                ChatTurn("gpt", caption.strip()),
            ]
            identity = {"id": f"{image_id}_{number}"}
            yield _draft(turns, image, identity | rest), where
        if boxes:
            turns = _grounding_turns(boxes, question or GROUNDING_QUESTION)
            yield _draft(turns, image, {"id": str(image_id)} | rest), where


def _draft(turns: list[ChatTurn], image: Row, rest: Row) -> Draft:
    turns[0] = ChatTurn("human", f"{IMAGE_TAG}\n{turns[0].text}")
    return Draft(turns, [image["file_name"]], None, None, rest)


def _grounding_turns(boxes: list[tuple[str, Box]], question: str) -> list[ChatTurn]:
    by_name: dict[str, list[Box]] = defaultdict(list)
    for name, box in boxes:
        by_name[name].append(box)
    turns = []
    for name, some in by_name.items():
        turns.append(ChatTurn("human", question.replace("{}", name)))
        turns.append(ChatTurn("gpt", referred(name, some)))
    return turns


def referred(name: str, boxes: list[Box]) -> str:
    """``<ref>name</ref><box>[[…], …]</box>``."""
    return f"{REF_START_TOKEN}{name}{REF_END_TOKEN}{box_element(boxes)}"


class CocoExport:
    """Collects the boxes of records as a COCO instances file."""

    def __init__(self) -> None:
        self._images: dict[str, Row] = {}
        self._categories: dict[str, int] = {}
        self._annotations: list[Row] = []

    def add(self, record: Mapping[str, Any], notes: Notes) -> None:
        """Take the ``<ref>…</ref><box>…</box>`` of a record's answers.

        Raises:
            UnfitRecordError: no image, several, no size, or no box.
        """
        own = read_own(record)
        if len(own.images) != 1:
            raise UnfitRecordError("not one image")
        width, height = (_number(record.get(key)) for key in ("width", "height"))
        if not width or not height:
            raise UnfitRecordError("no width and height")
        found = _named_boxes(own)
        if not found:
            raise UnfitRecordError("no <ref>…</ref><box>…</box> in an answer")
        image = self._images.setdefault(
            own.images[0],
            {
                "id": len(self._images) + 1,
                "file_name": own.images[0],
                "width": width,
                "height": height,
            },
        )
        notes.changes["boxes written in pixels, known to a thousandth of the side"] += len(found)
        notes.left["questions and answers"] += 1
        for name, (x1, y1, x2, y2) in found:
            category = self._categories.setdefault(name, len(self._categories) + 1)
            box = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )

    def content(self) -> Row:
        """The file."""
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        return {
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": categories,
        }


def _number(value: Any) -> float | None:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and value > 0 else None


def _named_boxes(own: OwnRecord) -> list[tuple[str, Box]]:
    found = []
    for turn in own.turns:
        if turn.speaker != "gpt":
            continue
        for part in turn.text.split(REF_START_TOKEN)[1:]:
            name, closed, rest = part.partition(REF_END_TOKEN)
            if closed:
                found += [(name, box) for boxes in tagged_boxes(rest)[:1] for box in boxes]
    return found
