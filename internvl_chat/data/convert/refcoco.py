"""RefCOCO, RefCOCO+, RefCOCOg: the evaluation's lines, and the release's pickles, read safely.

A line is ``{"image", "sent", "bbox": [x1, y1, x2, y2] in pixels, "width", "height"}``. The release
is a folder with ``refs(unc).p`` (or google, umd) and ``instances.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from internvl_chat.data.boxes import Box, tagged_boxes
from internvl_chat.data.convert.coco import (
    GROUNDING_QUESTION,
    CocoFile,
    read_coco,
    referred,
)
from internvl_chat.data.convert.conversations import ChatTurn, Draft, Row, carry_on, read_own
from internvl_chat.data.convert.files import Progress, no_progress
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.plain_pickle import read_plain_pickle
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.model.constants import IMAGE_TAG, REF_END_TOKEN, REF_START_TOKEN

_REF_KEYS = {"ref_id", "ann_id", "image_id", "split", "sentences", "file_name"}


def grounding_draft(image: str, sentence: str, box: Box, rest: Row, question: str | None) -> Draft:
    """One referring expression as a round."""
    asked = (question or GROUNDING_QUESTION).replace("{}", sentence)
    turns = [ChatTurn("human", f"{IMAGE_TAG}\n{asked}"), ChatTurn("gpt", referred(sentence, [box]))]
    return Draft(turns, [image], None, None, rest)


def from_refcoco_line(source: Mapping[str, Any], notes: Notes, *, question: str | None) -> Draft:
    """A line of the evaluation's files.

    Raises:
        UnfitRecordError: a field is missing or of the wrong type.
    """
    image, sentence, bbox = source.get("image"), source.get("sent"), source.get("bbox")
    width, height = source.get("width"), source.get("height")
    if not isinstance(image, str) or not isinstance(sentence, str):
        raise UnfitRecordError('no "image" and "sent"')
    numbers = [*(bbox if isinstance(bbox, list) else []), width, height]
    if len(numbers) != 6 or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in numbers
    ):
        raise UnfitRecordError('no "bbox" of four numbers, "width" and "height"')
    x1, y1, x2, y2, w, h = numbers
    if not w > 0 or not h > 0:
        raise UnfitRecordError("a width or height that is not positive")
    rest: Row = {"width": width, "height": height}
    draft = grounding_draft(image, sentence, (x1 / w, y1 / h, x2 / w, y2 / h), rest, question)
    carry_on(source, ("image", "sent", "bbox", "width", "height"), draft, notes)
    return draft


def to_refcoco_lines(record: Mapping[str, Any], notes: Notes) -> list[Row]:
    """A line for each round whose answer is one box; the sentence is the question's ``<ref>``.

    Raises:
        UnfitRecordError: no size, not one image, or no such round.
    """
    own = read_own(record)
    if len(own.images) != 1:
        raise UnfitRecordError("not one image")
    width, height = record.get("width"), record.get("height")
    if not isinstance(width, int | float) or not isinstance(height, int | float):
        raise UnfitRecordError("no width and height")
    lines = []
    for question, answer in own.rounds():
        sentence = question.partition(REF_START_TOKEN)[2].partition(REF_END_TOKEN)[0]
        boxes = [box for some in tagged_boxes(answer) for box in some]
        if not sentence or len(boxes) != 1:
            notes.left["rounds that are no <ref> with one <box>"] += 1
            continue
        x1, y1, x2, y2 = boxes[0]
        bbox = [x1 * width, y1 * height, x2 * width, y2 * height]
        line = {"image": own.images[0], "sent": sentence, "bbox": bbox}
        lines.append(line | {"width": width, "height": height} | own.rest)
    if not lines:
        raise UnfitRecordError("no round of <ref> with one <box>")
    notes.changes["boxes written in pixels, known to a thousandth of the side"] += len(lines)
    return lines


def release_drafts(
    folder: Path,
    notes: Notes,
    *,
    split: str,
    question: str | None,
    progress: Progress = no_progress,
) -> Iterator[tuple[Draft, str]]:
    """The expressions of a release's split, one record each.

    Raises:
        ConfigError: files are missing, or no such split.
        DatasetError: they are damaged or no plain data.
    """
    path = _refs_path(folder)
    instances = folder / "instances.json"
    if not instances.is_file():
        raise ConfigError("no such file", where=str(instances), fix="It is part of the release.")
    refs = read_plain_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise DatasetError("is no list of references", where=str(path))
    splits = sorted({str(ref.get("split")) for ref in refs})
    if split not in splits:
        raise ConfigError(
            f"no split {split!r} but {', '.join(splits)}", where=str(path), fix="Give --split."
        )
    coco = read_coco(instances, notes, progress, by_annotation=True)
    for number, ref in enumerate(refs):
        if str(ref.get("split")) == split:
            yield from _of_reference(ref, coco, notes, question, f"{path}, reference {number}")


def _refs_path(folder: Path) -> Path:
    found = sorted(folder.glob("refs(*).p"))
    if not found:
        raise ConfigError(
            "no refs(…).p in it",
            where=str(folder),
            fix="Name the folder of one data set (refcoco, refcoco+, refcocog), or a .jsonl.",
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(
            f"several sets of references: {names}",
            where=str(folder),
            fix="Leave the one you want in a folder of its own, with instances.json.",
        )
    return found[0]


def _of_reference(
    ref: Row, coco: CocoFile, notes: Notes, question: str | None, where: str
) -> Iterator[tuple[Draft, str]]:
    for key in set(ref) - _REF_KEYS:
        notes.left[f"references.{key}"] += 1
    image_id, box = coco.annotation_boxes.get(ref.get("ann_id"), (None, None))
    if box is None:
        notes.leave_record(where, "a reference to an annotation that has no box")
        return
    image = coco.image_table[image_id]
    for sentence in ref.get("sentences", ()):
        rest = {
            "id": f"{ref.get('ref_id')}_{sentence.get('sent_id')}",
            "width": image["width"],
            "height": image["height"],
        }
        for key in set(sentence) - {"sent", "sent_id"}:
            notes.left[f"sentences.{key}"] += 1
        yield grounding_draft(image["file_name"], str(sentence["sent"]), box, rest, question), where
