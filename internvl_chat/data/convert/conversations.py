"""Records as conversions see them: turns under any framework's role names, media and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from internvl_chat.data.convert.notes import Notes, UnfitRecordError
from internvl_chat.data.remarks import has_loss_mark
from internvl_chat.model.constants import IMAGE_TAG

Row = dict[str, Any]

OWN_KEYS = (
    "id",
    "image",
    "images",
    "video",
    "clip",
    "width",
    "height",
    "conversations",
    "messages",
    "system",
    "length",
)
"""What training reads of a record; anything else is carried on."""

_HUMAN = {"human", "user"}
_GPT = {"gpt", "assistant", "bing", "chatgpt", "bard", "model"}
_CALLS = {"function_call", "tool_call", "tool_calls"}
_REPLIES = {"observation", "tool", "tool_response", "function", "function_response", "ipython"}
_SYSTEM = {"system", "developer"}


@dataclass(frozen=True)
class ChatTurn:
    """One turn: of the model (``gpt``) or to it (``human``)."""

    speaker: str
    text: str
    kind: str = ""
    """The source's own role where it says more: ``function_call``, ``observation``, ..."""


@dataclass
class Draft:
    """A record in the making."""

    turns: list[ChatTurn]
    images: list[Any]
    """Paths, URLs, or :class:`EmbeddedImage` that are yet to be written."""
    video: str | None
    system: str | None
    rest: Row = field(default_factory=dict)
    """Other keys of the record, in their order: ``id``, sizes, what is carried on."""

    def as_record(self) -> Row:
        """The record, its ``image`` still as it was drafted."""
        record: Row = {}
        if "id" in self.rest:
            record["id"] = self.rest["id"]
        if self.images:
            record["image"] = self.images[0] if len(self.images) == 1 else self.images
        if self.video is not None:
            record["video"] = self.video
        record.update(self.rest)
        if self.system is not None:
            record["system"] = self.system
        record["conversations"] = [_turn_object(turn) for turn in self.turns]
        return record


def _turn_object(turn: ChatTurn) -> Row:
    record = {"from": turn.speaker, "value": turn.text}
    return record | {"kind": turn.kind} if turn.kind else record


def sort_role(role: object) -> tuple[str, str]:
    """(speaker, kind) of a framework's role name; the speaker is ``system``, ``human`` or ``gpt``.

    Raises:
        UnfitRecordError: unknown.
    """
    if isinstance(role, str):
        name = role.lower()
        if name in _HUMAN:
            return "human", ""
        if name in _GPT:
            return "gpt", ""
        if name in _CALLS:
            return "gpt", name
        if name in _REPLIES:
            return "human", name
        if name in _SYSTEM:
            return "system", ""
    raise UnfitRecordError(f"unknown role {role!r}")


def refuse_masked(marked: Mapping[str, Any], *, train_masked: bool, notes: Notes) -> None:
    """An answer that its author marked as not to be learned: training here learns every answer.

    Args:
        marked: an answer, or a whole record, with ``loss``, ``weight``, ``mask`` or the like.
        train_masked: the user wants them learned all the same.

    Raises:
        UnfitRecordError: there is such a mark.
    """
    if has_loss_mark(marked):
        if not train_masked:
            raise UnfitRecordError(
                "an answer is marked as not to be learned (--train-masked learns it)"
            )
        notes.changes["answers marked as not to be learned, learned all the same"] += 1


def carry_on(source: Mapping[str, Any], used: Sequence[str], draft: Draft, notes: Notes) -> None:
    """Take over keys that the conversion did not use.

    A key that means something else in a record here is left out.
    """
    for key, value in source.items():
        if key in used:
            continue
        if key in ("id", "width", "height", "clip", "length"):
            draft.rest[key] = value
        elif key in OWN_KEYS:
            notes.left[key] += 1
        else:
            draft.rest[key] = value
            notes.kept[key] += 1


@dataclass(frozen=True)
class OwnRecord:
    """A record of this project, taken apart for another format."""

    turns: tuple[ChatTurn, ...]
    images: tuple[str, ...]
    video: str | None
    system: str | None
    rest: Row
    """What training does not read, ``id`` excepted."""
    identity: Any = None

    def rounds(self) -> list[tuple[str, str]]:
        """(question, answer) pairs.

        Raises:
            UnfitRecordError: turns do not alternate, or the last question has no answer.
        """
        pairs = list(_pairs(self.turns))
        if not pairs:
            raise UnfitRecordError("no turns")
        return pairs


def _pairs(turns: Sequence[ChatTurn]) -> Iterator[tuple[str, str]]:
    speakers = [turn.speaker for turn in turns]
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        raise UnfitRecordError("human and gpt do not alternate")
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        yield question.text, answer.text


def read_own(record: Mapping[str, Any]) -> OwnRecord:
    """Take a record apart.

    Raises:
        UnfitRecordError: it is no record.
    """
    raw = record.get("conversations", record.get("messages"))
    if not isinstance(raw, list) or not raw:
        raise UnfitRecordError('"conversations" is missing or empty')
    system = record.get("system")
    turns = []
    for number, turn in enumerate(raw):
        speaker, text, kind = _own_turn(turn)
        if speaker == "system" and number == 0:
            system = text if system is None else system
        elif speaker == "system":
            raise UnfitRecordError("a system turn that is not the first")
        else:
            turns.append(ChatTurn(speaker, text, kind))
    video = record.get("video") or None
    if not all(one is None or isinstance(one, str) for one in (system, video)):
        raise UnfitRecordError('"system" or "video" is no string')
    value = record.get("image", record.get("images")) or []
    images = [value] if isinstance(value, str) else value
    if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise UnfitRecordError('"image" is neither a path nor a list of paths')
    return OwnRecord(
        turns=tuple(turns),
        images=tuple(images),
        video=video,
        system=system,
        rest={key: value for key, value in record.items() if key not in OWN_KEYS},
        identity=record.get("id"),
    )


def _own_turn(turn: Any) -> tuple[str, str, str]:
    if not isinstance(turn, dict):
        raise UnfitRecordError("a turn is no object")
    speaker, kind = sort_role(turn.get("from", turn.get("role")))
    text = turn.get("value", turn.get("content"))
    if not isinstance(text, str):
        raise UnfitRecordError("the text of a turn is no string")
    return speaker, text, turn.get("kind") or kind


def with_tags(own: OwnRecord, notes: Notes) -> tuple[ChatTurn, ...]:
    """The turns with one ``<image>`` an image: training puts missing ones first by itself.

    Raises:
        UnfitRecordError: some tags, but not as many as images.
    """
    num_tags = sum(turn.text.count(IMAGE_TAG) for turn in own.turns)
    if num_tags == len(own.images):
        return own.turns
    if num_tags or not own.turns:
        raise UnfitRecordError("not as many <image> placeholders as images")
    notes.changes["<image> put before the first question"] += 1
    first = own.turns[0]
    text = f"{IMAGE_TAG}\n" * len(own.images) + first.text
    return (ChatTurn(first.speaker, text, first.kind), *own.turns[1:])


def without_leading_tags(text: str, num_images: int) -> str:
    """A question less the ``<image>`` lines before it, where these are all there are."""
    tags = f"{IMAGE_TAG}\n" * num_images
    rest = text.removeprefix(tags)
    return rest if num_images and IMAGE_TAG not in rest else text


def leave_keys(
    own: OwnRecord, record: Mapping[str, Any], kept: Sequence[str], notes: Notes
) -> None:
    """Count the keys that training reads and that the other format has no place for."""
    for key in ("width", "height", "clip", "length"):
        if key in record and key not in kept:
            notes.left[key] += 1
    if own.video is not None and "video" not in kept:
        raise UnfitRecordError("a video")
