"""What a user said and saw, as immutable values: what ``gr.State`` keeps for a session.

Holds paths and text only; no model, no tensor, no lock: Gradio deep-copies it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from internvl_chat.data.video import expand_video_tag
from internvl_chat.errors import UserError
from internvl_chat.model.constants import IMAGE_TAG, IMG_CONTEXT_TOKEN, VIDEO_TAG

# The frames that a <video> becomes end with a line of their own.
_TAG: Final = re.compile(f"{re.escape(IMAGE_TAG)}|{re.escape(VIDEO_TAG)}\n?")


class QuestionError(UserError):
    """What somebody asked on the page cannot be answered; shown there as it is."""


@dataclass(frozen=True, kw_only=True)
class MediaItem:
    """An uploaded image or video that was looked at and found usable."""

    path: str
    num_frames: int | None = None
    """Frames of a video that the model sees; None for an image."""

    @property
    def name(self) -> str:
        """File name, as a user knows it."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one checkpoint said to one question."""

    text: str = ""
    problem: str = ""
    """Why there is no answer, or no drawing."""
    stopped: bool = False
    finished: bool = True
    drawing: str | None = None
    """File with the image on which the answer's boxes are drawn."""
    caption: str = ""
    """Which image that is."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question, its images and an answer of each checkpoint."""

    typed: str
    """As it was typed."""
    question: str
    """As the model gets it: every image and frame has its ``<image>``."""
    media: tuple[MediaItem, ...]
    """In the order of their tags."""
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns so far and the question that waits for its answer."""

    turns: tuple[Turn, ...] = ()
    pending: Turn | None = None

    @property
    def images(self) -> tuple[MediaItem, ...]:
        """All images (no videos), the pending question's last."""
        asked = (*self.turns, *([self.pending] if self.pending else []))
        return tuple(m for turn in asked for m in turn.media if m.num_frames is None)

    def ask(self, typed: str, media: Sequence[MediaItem]) -> Conversation:
        """The conversation with this question waiting.

        Raises:
            QuestionError: no question, or tags that do not fit the new images and videos.
        """
        question, ordered = write_tags(typed, media)
        turn = Turn(typed=typed, question=question, media=ordered)
        return Conversation(turns=self.turns, pending=turn)

    def again(self) -> Conversation:
        """The last question waiting once more, its answers gone.

        Raises:
            QuestionError: nothing was asked yet.
        """
        if not self.turns:
            raise QuestionError("There is no answer to regenerate yet.")
        last = self.turns[-1]
        turn = Turn(typed=last.typed, question=last.question, media=last.media)
        return Conversation(turns=self.turns[:-1], pending=turn)

    def answered(self, answers: Sequence[Answer]) -> Conversation:
        """The pending question with these answers, as the last turn."""
        assert self.pending is not None
        turn = Turn(
            typed=self.pending.typed,
            question=self.pending.question,
            media=self.pending.media,
            answers=tuple(answers),
        )
        return Conversation(turns=(*self.turns, turn))


def write_tags(typed: str, media: Sequence[MediaItem]) -> tuple[str, tuple[MediaItem, ...]]:
    """Give every new image and frame its ``<image>`` tag.

    Args:
        typed: with a tag (``<image>``, ``<video>``) for each item, or with none: then the media
            stand before the question, in their order.
        media: what was uploaded with the question.

    Returns:
        The question as the model gets it, and the media in the order of their tags.

    Raises:
        QuestionError: an empty question, a reserved word, or tags that do not fit the media.
    """
    if not _TAG.sub("", typed).strip():
        raise QuestionError("The question is empty. Type one.")
    if IMG_CONTEXT_TOKEN in typed:
        raise QuestionError(f"{IMG_CONTEXT_TOKEN} is reserved for the model. Leave it out.")
    kinds = [VIDEO_TAG if item.num_frames else IMAGE_TAG for item in media]
    tags = [tag.strip() for tag in _TAG.findall(typed)]
    if not tags:
        typed = "".join(f"{tag}\n" for tag in kinds) + typed
    elif sorted(tags) != sorted(kinds):
        raise QuestionError(
            f"The question has tags for {_count(tags)}, but {_count(kinds)} came with it. "
            f"Write {IMAGE_TAG} or {VIDEO_TAG} once for each new file, or not at all."
        )
    waiting: dict[str, Iterator[MediaItem]] = {
        tag: iter([m for m, kind in zip(media, kinds, strict=True) if kind == tag])
        for tag in (IMAGE_TAG, VIDEO_TAG)
    }
    ordered: list[MediaItem] = []

    def write(match: re.Match[str]) -> str:
        item = next(waiting[match[0].strip()])
        ordered.append(item)
        return expand_video_tag(match[0], item.num_frames or 0)  # leaves an <image> alone

    return _TAG.sub(write, typed), tuple(ordered)


def _count(tags: Sequence[str]) -> str:
    counts = ((tags.count(IMAGE_TAG), "image"), (tags.count(VIDEO_TAG), "video"))
    return " and ".join(f"{number} {kind}{'s' * (number != 1)}" for number, kind in counts)
