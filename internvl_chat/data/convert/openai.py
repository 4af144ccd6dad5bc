"""OpenAI's chat messages, as fine-tuning files and TRL hold them.

``{"messages": [{"role", "content": text | parts}]}``; parts are ``text``, ``image_url``, ``image``
and ``video``. Parts are joined by line ends, an image being ``<image>``, which is undone on the way
back: ``[image, "What?"]`` is ``<image>\\nWhat?``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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
from internvl_chat.data.convert.media import EmbeddedImage, image_reference
from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.convert.sharegpt import as_list
from internvl_chat.model.constants import IMAGE_TAG, VIDEO_TAG

_ROLES = {"human": "user", "gpt": "assistant"}
_MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id"}


class _Media:
    """What the parts of a record's messages name, in reading order.

    Args:
        beside: images of the record that parts ``{"type": "image"}`` refer to in order.
    """

    def __init__(self, beside: list[Any]) -> None:
        self.images: list[str | EmbeddedImage] = []
        self.videos: list[str] = []
        self.beside = beside


def from_openai(source: Mapping[str, Any], notes: Notes, *, train_masked: bool = False) -> Draft:
    """A record of OpenAI's messages.

    Raises:
        UnfitRecordError: sound, files, images on the net, several videos, masked answers, ...
    """
    raw = source.get("messages", source.get("conversations"))
    if not isinstance(raw, list) or not raw:
        raise UnfitRecordError('"messages" is missing or empty')
    refuse_masked(source, train_masked=train_masked, notes=notes)
    media = _Media(as_list(source.get("images", source.get("image"))))
    system: str | None = None
    turns: list[ChatTurn] = []
    for message in raw:
        if not isinstance(message, Mapping):
            raise UnfitRecordError("a message is no object")
        turn = _turn(message, media, notes, train_masked)
        if turn.speaker == "system":
            if turns or system is not None:
                raise UnfitRecordError("a system message that is not the first")
            system = turn.text
        else:
            turns.append(turn)
    if media.beside and not media.images:  # <image> in the text, files beside it
        media.images, media.beside = [image_reference(one) for one in media.beside], []
    if media.beside:
        raise UnfitRecordError("more images than parts of type image")
    if len(media.videos) > 1:
        raise UnfitRecordError("several videos in a record")
    draft = Draft(turns, list(media.images), media.videos[0] if media.videos else None, system)
    carry_on(source, ("messages", "conversations", "images", "image"), draft, notes)
    return draft


def to_openai(
    record: Mapping[str, Any], notes: Notes, urls: Mapping[str, str] | None = None
) -> Row:
    """A record of OpenAI's messages.

    Args:
        urls: image path -> URL that is written for it; the path itself without.

    Raises:
        UnfitRecordError: it is no record, or its placeholders do not fit its images.
    """
    own = read_own(record)
    leave_keys(own, record, ("video",), notes)
    messages: list[Row] = []
    if own.system is not None:
        messages.append({"role": "system", "content": own.system})
    turns = own.turns if own.video is not None else with_tags(own, notes)
    images = iter(own.images)
    for turn in turns:
        messages.append(_message(turn, images, own.video, urls or {}, notes))
    result: Row = {} if own.identity is None else {"id": own.identity}
    return result | {"messages": messages} | own.rest


def _turn(message: Mapping[str, Any], media: _Media, notes: Notes, train_masked: bool) -> ChatTurn:
    speaker, kind = sort_role(message.get("role"))
    if speaker == "gpt":
        refuse_masked(message, train_masked=train_masked, notes=notes)
    for key in set(message) - _MESSAGE_KEYS:
        notes.left[f"{key} of a message"] += 1
    if "tool_call_id" in message:
        notes.left["tool_call_id of a message"] += 1
    content, calls = message.get("content"), message.get("tool_calls")
    text = content if isinstance(content, str) else _text_of_parts(content or [], media, notes)
    if calls:
        if text:
            raise UnfitRecordError("a message with both content and tool_calls")
        return ChatTurn(speaker, json.dumps(calls, ensure_ascii=False), "tool_calls")
    if content is None:
        raise UnfitRecordError("a message without content")
    return ChatTurn(speaker, text, kind)


def _text_of_parts(parts: Any, media: _Media, notes: Notes) -> str:
    if not isinstance(parts, list):
        raise UnfitRecordError("content that is neither text nor a list of parts")
    pieces = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
            continue
        if not isinstance(part, Mapping):
            raise UnfitRecordError("a part that is no object")
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            if not isinstance(part.get("text"), str):
                raise UnfitRecordError("a text part without text")
            pieces.append(part["text"])
        elif kind in ("image_url", "input_image", "image"):
            media.images.append(_image_of(part, media, notes))
            pieces.append(IMAGE_TAG)
        elif kind in ("video", "video_url"):
            media.videos.append(_video_of(part))
            pieces.append(VIDEO_TAG)
        else:
            raise UnfitRecordError(f"a part of type {kind!r}")
    return "\n".join(pieces)


def _image_of(part: Mapping[str, Any], media: _Media, notes: Notes) -> str | EmbeddedImage:
    value = part.get("image_url", part.get("image", part.get("url", part.get("path"))))
    if isinstance(value, Mapping) and "detail" in value:
        notes.left["detail of an image"] += 1
    if value is None and media.beside:
        value = media.beside.pop(0)
    if value is None:
        raise UnfitRecordError("an image part that names no image")
    return image_reference(value)


def _video_of(part: Mapping[str, Any]) -> str:
    value = part.get("video", part.get("video_url"))
    if isinstance(value, Mapping):
        value = value.get("url", value.get("path"))
    if not isinstance(value, str):
        raise UnfitRecordError("a video that is no path")
    found = image_reference(value)
    if not isinstance(found, str):
        raise UnfitRecordError("a video that is no path")
    return found


def _message(
    turn: ChatTurn, images: Any, video: str | None, urls: Mapping[str, str], notes: Notes
) -> Row:
    if turn.kind == "tool_calls":
        return {"role": "assistant", "content": None, "tool_calls": json.loads(turn.text)}
    role = "tool" if turn.speaker == "human" and turn.kind else _ROLES[turn.speaker]
    if turn.kind and role != turn.kind:
        notes.changes[f"{turn.kind} turns written as {role} messages"] += 1
    tag = VIDEO_TAG if video is not None else IMAGE_TAG
    if turn.speaker == "gpt" or tag not in turn.text:
        return {"role": role, "content": turn.text}
    pieces = turn.text.split(tag)
    parts: list[Row] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append(_media_part(images, video, urls))
        text = _unjoin(piece, number > 0, number + 1 < len(pieces), notes)
        if text is not None:
            parts.append({"type": "text", "text": text})
    return {"role": role, "content": parts}


def _media_part(images: Any, video: str | None, urls: Mapping[str, str]) -> Row:
    if video is not None:
        return {"type": "video", "video": video}
    path = next(images)
    return {"type": "image_url", "image_url": {"url": urls.get(path, path)}}


def _unjoin(piece: str, follows: bool, precedes: bool, notes: Notes) -> str | None:
    """The text between placeholders without the line ends that joined it to them."""
    if follows and precedes and piece == "\n":
        return None  # nothing stood between two images
    if piece == "":
        if follows and precedes:
            notes.changes["<image> inside a sentence: parts have line ends between them"] += 1
        return None
    joined = (not follows or piece[0] == "\n") and (not precedes or piece[-1] == "\n")
    if not joined:
        notes.changes["<image> inside a sentence: parts have line ends between them"] += 1
    piece = piece[1:] if follows and piece[0] == "\n" else piece
    return piece[:-1] if precedes and piece[-1:] == "\n" else piece
