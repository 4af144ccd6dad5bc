"""ShareGPT as LLaMA-Factory and ms-swift read it, and LLaVA, from which records here descend.

``{"conversations": [{"from", "value"}], "images": [...], "videos": [...], "system", "tools"}``;
ms-swift writes ``messages`` of ``role`` and ``content``, ``objects`` for boxes, ``loss`` for masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_chat.data.boxes import Box, box_element
from internvl_chat.data.convert.conversations import (
    ChatTurn,
    Draft,
    Row,
    carry_on,
    leave_keys,
    read_own,
    refuse_masked,
    sort_role,
    with_tags,
)
from internvl_chat.data.convert.media import image_reference
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.model.constants import REF_END_TOKEN, REF_START_TOKEN

_TURN_KEYS = {"from", "value", "role", "content", "kind"}
_USED = (
    *("conversations", "conversation", "messages", "system", "objects"),
    *("images", "image", "videos", "video", "audios", "audio"),
)


def from_llava(source: Mapping[str, Any], notes: Notes, *, train_masked: bool = False) -> Draft:
    """A LLaVA record; its keys stay as they are.

    Raises:
        UnfitRecordError: it has no conversation, or an answer is not to be learned.
    """
    turns = _turns(source, notes, train_masked)
    system = _system(turns, source.get("system"))
    images = [image_reference(one) for one in as_list(source.get("image", source.get("images")))]
    draft = Draft(turns, images, source.get("video") or None, system)
    used = ("conversations", "messages", "image", "images", "video", "system")
    carry_on(source, used, draft, notes)
    return draft


def to_llava(record: Mapping[str, Any], notes: Notes) -> Row:
    """A record is a LLaVA record, with other spellings made LLaVA's.

    Raises:
        UnfitRecordError: it is no record.
    """
    own = read_own(record)
    draft = Draft(list(own.turns), list(own.images), own.video, own.system)
    for key in ("id", "width", "height", "clip", "length"):
        if key in record:
            draft.rest[key] = record[key]
    draft.rest.update(own.rest)
    return draft.as_record()


def from_sharegpt(source: Mapping[str, Any], notes: Notes, *, train_masked: bool = False) -> Draft:
    """A ShareGPT record.

    ``function_call`` becomes a turn of the model, ``observation`` one to it, both marked by
    ``kind``; ``tools`` is carried on.

    Raises:
        UnfitRecordError: sound, several videos, unknown roles, masked answers, boxes without sizes.
    """
    turns = _turns(source, notes, train_masked)
    system = _system(turns, source.get("system"))
    if as_list(source.get("audios", source.get("audio"))):
        raise UnfitRecordError("sound")
    images = [image_reference(one) for one in as_list(source.get("images", source.get("image")))]
    videos = as_list(source.get("videos", source.get("video")))
    if len(videos) > 1:
        raise UnfitRecordError("several videos in a record")
    if source.get("objects"):
        turns = _place_objects(turns, source["objects"], source)
        notes.changes["objects written into the text as <ref> and <box>"] += 1
    video = _video_path(videos[0]) if videos else None
    draft = Draft(turns, images, video, system)
    carry_on(source, _USED, draft, notes)
    return draft


def to_sharegpt(record: Mapping[str, Any], notes: Notes) -> Row:
    """A ShareGPT record, an ``<image>`` for each of its ``images``.

    Raises:
        UnfitRecordError: it is no record.
    """
    own = read_own(record)
    leave_keys(own, record, ("video",), notes)
    result: Row = {} if own.identity is None else {"id": own.identity}
    turns = own.turns if own.video is not None else with_tags(own, notes)
    result["conversations"] = [
        {"from": turn.kind or turn.speaker, "value": turn.text} for turn in turns
    ]
    if own.system is not None:
        result["system"] = own.system
    if own.images:
        result["images"] = list(own.images)
    if own.video is not None:
        result["videos"] = [own.video]
    return result | own.rest


def as_list(value: Any) -> list[Any]:
    """Nothing, one or several, as a list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _video_path(value: Any) -> str:
    path = value.get("path", value.get("video")) if isinstance(value, Mapping) else value
    if not isinstance(path, str) or path[:5].lower() == "data:" or "://" in path[:12]:
        raise UnfitRecordError("a video that is no path")
    return path


def _turns(source: Mapping[str, Any], notes: Notes, train_masked: bool) -> list[ChatTurn]:
    raw = next((source[k] for k in ("conversations", "conversation", "messages") if k in source), 0)
    if not isinstance(raw, list) or not raw:
        raise UnfitRecordError('"conversations" is missing or empty')
    refuse_masked(source, train_masked=train_masked, notes=notes)
    turns = []
    for turn in raw:
        if not isinstance(turn, Mapping):
            raise UnfitRecordError("a turn is no object")
        speaker, kind = sort_role(turn.get("from", turn.get("role")))
        text = turn.get("value", turn.get("content"))
        if not isinstance(text, str):
            if not kind or text is None:
                raise UnfitRecordError("the text of a turn is no string")
            text = json.dumps(text, ensure_ascii=False)  # a call written as an object
            notes.changes["calls and their results written as JSON text"] += 1
        if speaker == "gpt":
            refuse_masked(turn, train_masked=train_masked, notes=notes)
        for key in set(turn) - _TURN_KEYS:
            notes.left[f"{key} of a turn"] += 1
        turns.append(ChatTurn(speaker, text, str(turn.get("kind") or kind)))
    return turns


def _system(turns: list[ChatTurn], given: Any) -> str | None:
    """The system message, taken out of the turns where it is the first."""
    if given is not None and not isinstance(given, str):
        raise UnfitRecordError('"system" is no string')
    if turns and turns[0].speaker == "system":
        first = turns.pop(0).text
        if given:
            raise UnfitRecordError("two system messages")
        given = first
    if any(turn.speaker == "system" for turn in turns):
        raise UnfitRecordError("a system turn that is not the first")
    return given or None


def _place_objects(
    turns: Sequence[ChatTurn], objects: Any, source: Mapping[str, Any]
) -> list[ChatTurn]:
    """ms-swift's ``<ref-object>`` and ``<bbox>``, filled in order from ``objects``."""
    if not isinstance(objects, Mapping):
        raise UnfitRecordError('"objects" is no object')
    names = iter(as_list(objects.get("ref")))
    boxes = iter([_unit_box(one, objects, source) for one in as_list(objects.get("bbox"))])
    placed = []
    for turn in turns:
        text = turn.text
        for tag, values in (("<ref-object>", names), ("<bbox>", boxes)):
            parts = text.split(tag)
            filled = parts[0]
            for part in parts[1:]:
                value = next(values, None)
                if value is None:
                    raise UnfitRecordError(f"more {tag} than objects")
                is_box = tag == "<bbox>"
                shown = box_element([value]) if is_box else _reference(str(value))
                filled += shown + part
            text = filled
        placed.append(ChatTurn(turn.speaker, text, turn.kind))
    if next(names, None) is not None or next(boxes, None) is not None:
        raise UnfitRecordError("more objects than <ref-object> and <bbox>")
    return placed


def _reference(name: str) -> str:
    return f"{REF_START_TOKEN}{name}{REF_END_TOKEN}"


def _unit_box(value: Any, objects: Mapping[str, Any], source: Mapping[str, Any]) -> Box:
    """A box of ``objects`` in 0-1; ``bbox_type`` is real (pixels), norm1000 or norm1."""
    if not isinstance(value, list) or len(value) != 4:
        raise UnfitRecordError("a box that is no list of four numbers")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise UnfitRecordError("a box that is no list of four numbers")
    kind = objects.get("bbox_type", "real")
    if kind == "norm1":
        width = height = 1.0
    elif kind == "norm1000":
        width = height = 1000.0
    else:
        width, height = (source.get(k, objects.get(k)) for k in ("width", "height"))
        width, height = (
            v[0] if isinstance(v, list) and len(v) == 1 else v for v in (width, height)
        )
        if not isinstance(width, int | float) or not isinstance(height, int | float):
            raise UnfitRecordError("boxes in pixels without the image's width and height")
    x1, y1, x2, y2 = value
    return x1 / width, y1 / height, x2 / width, y2 / height
