"""Mends of a record that leave no choice; everything else is the author's to decide. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from internvl_chat.data.check.box_text import Sides, order_boxes
from internvl_chat.model.constants import IMAGE_TAG, VIDEO_TAG

_USER_WORDS: Final = {"human", "user", "usr", "person", "customer", "question", "instruction"}
_ASSISTANT_WORDS: Final = {
    *("gpt", "assistant", "bot", "chatbot", "model", "chatgpt", "ai", "answer", "bard", "gemini"),
    *("claude", "llm"),
}
_VERSION: Final = re.compile(r"[-_ ]?\d.*\Z")
_SYSTEM_WORDS: Final = {"system"}
_OPENING: Final = re.compile(r"\A\s*<s>\s*")
_CLOSING: Final = re.compile(r"\s*(?:</s>|<\|im_end\|>)\s*\Z")

Turn = dict[str, Any]


@dataclass
class _Draft:
    """A record being mended and what was done to it."""

    data: dict[str, Any]
    turns: list[Turn]
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(code, what was done)."""

    @property
    def paths(self) -> list[str]:
        value = self.data.get("image") or self.data.get("images") or []
        if isinstance(value, str):
            return [value]
        return value if isinstance(value, list) else []

    def texts(self, *, users: bool) -> Iterable[tuple[Turn, str]]:
        """(turn, key of its text) of questions or of answers."""
        for turn in self.turns:
            key = "value" if "value" in turn else "content"
            if isinstance(turn.get(key), str) and (_role(turn) == "user") == users:
                yield turn, key


@dataclass(frozen=True, kw_only=True)
class MendContext:
    """What a mend may know besides the record."""

    pixels: Sides | None
    """As :func:`order_boxes`."""
    image_sizes: tuple[tuple[int, int], ...] | None
    """(width, height) of each image, where they were decoded."""


def mend_record(
    data: dict[str, Any], codes: set[str], context: MendContext
) -> tuple[bytes, list[tuple[str, str]]] | None:
    """The record with what is clear mended.

    Args:
        data: the JSON object; it is changed.
        codes: what was found about it.
        context: of the record.

    Returns:
        (one line of JSON, (code, what was done) of each mend), or None if nothing could be done.
    """
    raw = data.get("conversations") or data.get("messages")
    turns = raw if isinstance(raw, list) and all(isinstance(turn, dict) for turn in raw) else []
    draft = _Draft(data, turns)
    for code, mend in _MENDS.items():
        if code in codes:
            mend(draft, context)
    if not draft.steps:
        return None
    try:
        return orjson.dumps(draft.data), draft.steps
    except orjson.JSONEncodeError:  # nested more deeply than is written
        return None


def one_line(raw: bytes) -> bytes:
    """A record's JSON on one line, nothing else changed: strings in JSON hold no line ends."""
    text = raw.removeprefix(b"\xef\xbb\xbf").strip()
    return text.replace(b"\r", b" ").replace(b"\n", b" ")


def _role(turn: Turn) -> str | None:
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str):
        return None
    word = _VERSION.sub("", role.strip().lower())
    if word in _USER_WORDS:
        return "user"
    if word in _ASSISTANT_WORDS:
        return "assistant"
    return "system" if word in _SYSTEM_WORDS else None


def _nan(draft: _Draft, context: MendContext) -> None:
    draft.steps.append(("NAN", "NaN written as null"))


def _roles(draft: _Draft, context: MendContext) -> None:
    names = {"user": ("human", "user"), "assistant": ("gpt", "assistant")}
    for turn in draft.turns:
        key, role = ("from" if "from" in turn else "role"), _role(turn)
        if role in names and turn[key] not in names[role]:
            known = names[role][key == "role"]
            draft.steps.append(("ROLE", f"role {turn[key]!r} written as {known!r}"))
            turn[key] = known


def _turns(draft: _Draft, context: MendContext) -> None:
    roles = [_role(turn) for turn in draft.turns]
    if len(roles) > 1 and roles[-2:] == ["assistant", "user"]:
        del draft.turns[-1]
        draft.steps.append(("TURNS", "the last question, which has no answer, left out"))


def _video(draft: _Draft, context: MendContext) -> None:
    paths = draft.paths
    if len(paths) != 1 or draft.data.get("video"):
        return
    for key in ("image", "images", "width", "height"):
        draft.data.pop(key, None)
    draft.data["video"] = paths[0]
    for turn, key in draft.texts(users=True):
        turn[key] = turn[key].replace(IMAGE_TAG, VIDEO_TAG)
    draft.steps.append(("VIDEO_AS_IMAGE", 'the video named under "video"'))


def _tags_in_answers(draft: _Draft, context: MendContext) -> None:
    for turn, key in draft.texts(users=False):
        text = turn[key]
        for tag in (IMAGE_TAG, VIDEO_TAG):
            text = text.replace(f"{tag}\n", "").replace(f" {tag}", "").replace(tag, "")
        if text != turn[key] and text.strip():
            turn[key] = text
            draft.steps.append(("TAG_IN_ANSWER", "a tag taken out of an answer"))


def _tags(draft: _Draft, context: MendContext) -> None:
    questions = list(draft.texts(users=True))
    video = draft.data.get("video")
    num_files, tag = (1, VIDEO_TAG) if video else (len(draft.paths), IMAGE_TAG)
    if not questions or not num_files:
        return
    if video:
        for turn, key in questions:
            turn[key] = turn[key].replace(f"{IMAGE_TAG}\n", "").replace(IMAGE_TAG, "")
    num_tags = sum(turn[key].count(tag) for turn, key in questions)
    if num_tags < num_files:
        turn, key = questions[0]
        turn[key] = f"{tag}\n" * (num_files - num_tags) + turn[key]
        draft.steps.append(("TAG_MISMATCH", f"{num_files - num_tags} missing {tag} put in"))
    elif num_tags > num_files:
        kept = 0
        for turn, key in questions:
            head, *rest = turn[key].split(tag)
            for piece in rest:
                head += (tag if kept < num_files else "") + (
                    piece if kept < num_files else piece.removeprefix("\n")
                )
                kept += 1
            turn[key] = head
        draft.steps.append(("TAG_MISMATCH", f"{num_tags - num_files} surplus {tag} left out"))


def _ends(draft: _Draft, context: MendContext) -> None:
    for users in (True, False):
        for turn, key in draft.texts(users=users):
            text = _CLOSING.sub("", _OPENING.sub("", turn[key]))
            if text != turn[key] and text:
                turn[key] = text
                draft.steps.append(("SENTENCE_MARK", "a mark at the end of a text left out"))


def _boxes(draft: _Draft, context: MendContext) -> None:
    has_image = bool(draft.paths)
    for users in (True, False):
        for turn, key in draft.texts(users=users):
            text = order_boxes(turn[key], has_image=has_image, pixels=context.pixels)
            if text != turn[key]:
                turn[key] = text
                draft.steps.append(("BOX_INVERTED", "corners of boxes exchanged"))


def _sizes(draft: _Draft, context: MendContext) -> None:
    sizes = context.image_sizes
    if not sizes or len(sizes) != len(draft.paths):
        return
    for axis, key in enumerate(("width", "height")):
        numbers = [size[axis] for size in sizes]
        one = len(numbers) == 1 and not isinstance(draft.data.get(key), list)
        draft.data[key] = numbers[0] if one else numbers
    draft.steps.append(("SIZE_DIFFERS", "width and height written as the image's"))


# In this order: each may rely on those before it.
_MENDS: Final[dict[str, Callable[[_Draft, MendContext], None]]] = {
    "NAN": _nan,
    "ROLE": _roles,
    "TURNS": _turns,
    "VIDEO_AS_IMAGE": _video,
    "TAG_IN_ANSWER": _tags_in_answers,
    "TAG_MISMATCH": _tags,
    "SENTENCE_MARK": _ends,
    "CONTROL_TOKEN": _ends,
    "BOX_INVERTED": _boxes,
    "SIZE_DIFFERS": _sizes,
    "SIZE_MISMATCH": _sizes,
}
