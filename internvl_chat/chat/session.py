"""A conversation about images and videos that are added as it goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from internvl_chat.chat.answer_text import AnswerText
from internvl_chat.chat.context import count_tokens, require_room, require_room_for_frames
from internvl_chat.chat.media import image_config_of, load_tiles, load_video
from internvl_chat.chat.typed_text import require_text
from internvl_chat.config import VideoBackend
from internvl_chat.data.video import expand_video_tag
from internvl_chat.model.constants import IMAGE_TAG, IMG_CONTEXT_TOKEN, VIDEO_TAG

_TAG: Final = re.compile(f"{IMAGE_TAG}|{VIDEO_TAG}")


class _AnswerStreamer(BaseStreamer):
    """Hands text over as it becomes certain, and counts tokens.

    Together the pieces are what ``model.chat`` returns.
    """

    def __init__(self, text: AnswerText, tell: Callable[[str], None]) -> None:
        self._text = text
        self._tell = tell
        self._is_prompt = True  # what generate hands over first
        self.num_tokens = 0
        self.first_token: float | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt, then the answer's tokens."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self.num_tokens += value.numel()
        self.first_token = self.first_token or time.perf_counter()
        for token_id in value.flatten().tolist():
            self._hand_over(self._text.push(token_id))

    def end(self) -> None:
        """The answer is complete."""
        self._hand_over(self._text.finish())

    def _hand_over(self, piece: str) -> None:
        if piece:
            self._tell(piece)


class StopOnRequest(StoppingCriteria):
    """Ends generation when somebody else wants it to end; asked once a token."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        stop = self._should_stop()
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer and what it took."""

    text: str
    num_tokens: int
    seconds: float
    """From the question to the last token, images included."""
    first_token_seconds: float
    ended_by_context: bool = False
    """The model could read no further; the answer may have gone on."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A first question and its images, as ``model.batch_chat`` takes them."""

    text: str
    """With a tag for each image."""
    tiles: Tensor | None
    """(n, 3, S, S) float32, reading order; ``None`` without images."""
    num_patches: list[int]
    """Tiles of each image."""
    room: int | None
    """Tokens that the model's context has left for the answer; None without a limit."""


@dataclass(frozen=True, kw_only=True)
class _NewMedia:
    """An image or video that no question is about yet."""

    tag: str
    """``<image>`` or ``<video>``."""
    tags: str
    """One ``<image>`` for each image that the model sees, as they stand before a question."""


@dataclass
class ChatSession:
    """History and tiles of one conversation; a failed question leaves both as they were."""

    model: Any
    tokenizer: Any
    generation: dict[str, Any]
    """Keywords of ``generate``."""
    history: list[tuple[str, str]] = field(default_factory=list)
    media: list[str] = field(default_factory=list)
    """Files, in the order in which they were added."""
    video_backend: VideoBackend | None = None
    """Library that reads video files; None takes the one that is installed."""
    _tiles: list[Tensor] = field(default_factory=list)
    _num_patches: list[int] = field(default_factory=list)
    _new: list[_NewMedia] = field(default_factory=list)
    """What was added since the last question."""

    def add_image(self, path: str) -> None:
        """The next question is about this image too.

        Raises:
            BadRecordError: the file cannot be used.
        """
        tiles = load_tiles(path, image_config_of(self.model.config))
        new = _NewMedia(tag=IMAGE_TAG, tags=f"{IMAGE_TAG}\n")
        self._add(path, tiles, [len(tiles)], new)

    def add_video(self, path: str, *, num_segments: int = 8) -> None:
        """The next question is about this video too.

        Raises:
            BadRecordError: the file cannot be used.
            ConfigError: so many frames are longer than the model's context.
        """
        require_room_for_frames(self.model.config, num_segments)
        tiles, counts = load_video(
            path,
            model=self.model,
            num_segments=num_segments,
            video_backend=self.video_backend,
        )
        tags = expand_video_tag(f"{VIDEO_TAG}\n", len(counts))
        self._add(path, tiles, counts, _NewMedia(tag=VIDEO_TAG, tags=tags))

    def _add(self, path: str, tiles: Tensor, counts: list[int], new: _NewMedia) -> None:
        self._tiles.append(tiles)
        self._num_patches += counts
        self._new.append(new)
        self.media.append(path)

    def reset(self) -> None:
        """Forget everything."""
        self.history.clear()
        self.media.clear()
        self._tiles.clear()
        self._num_patches.clear()
        self._new.clear()

    def remember(self, question: str, answer: str) -> None:
        """Take a question and its answer as given, the images added before it included.

        With :meth:`add_image` and :meth:`add_video` this builds up a conversation anew that was
        kept elsewhere.
        """
        self.history = [*self.history, (self._with_tags(question), _without_tags(answer))]
        self._new.clear()

    def take(self, question: str) -> Prompt:
        """The question with the images added before it; the session forgets them.

        Raises:
            ValueError: no question, or another number of ``<image>`` than images.
            PromptTooLongError: the model's context leaves no room for an answer.
        """
        text, room = self._checked(question)
        tiles = torch.cat(self._tiles) if self._tiles else None
        counts = list(self._num_patches)
        self.reset()
        return Prompt(text=text, tiles=tiles, num_patches=counts, room=room)

    def count_prompt_tokens(self, question: str) -> int:
        """Tokens that the model would read if this were asked now, image tokens included."""
        turns = [*self.history, (self._with_tags(question), None)]
        return count_tokens(self.model, self.tokenizer, turns, self._num_patches)

    def has_room(self, prompt: Prompt) -> bool:
        """Whether the longest answer fits into the model's context behind the prompt."""
        most = self.generation.get("max_new_tokens")
        return prompt.room is None or most is None or most <= prompt.room

    def settings_for(self, room: int | None) -> dict[str, Any]:
        """Keywords of ``generate`` for an answer of at most ``room`` tokens."""
        most = self.generation.get("max_new_tokens")
        if room is None or most is None:
            return dict(self.generation)
        return {**self.generation, "max_new_tokens": min(most, room)}

    def _checked(self, question: str) -> tuple[str, int | None]:
        """The question with its tags, and the room that it leaves for an answer."""
        require_text(question)
        text = self._with_tags(question)
        num_tags, num_new = text.count(IMAGE_TAG), sum(n.tags.count(IMAGE_TAG) for n in self._new)
        if num_tags != num_new:
            raise ValueError(
                f"{num_tags} {IMAGE_TAG} tags in the question, {num_new} images. Write one for "
                "each image that is new, or none"
            )
        num_tokens = self.count_prompt_tokens(question)
        return text, require_room(self.model, num_tokens, self._num_patches)

    def _with_tags(self, question: str) -> str:
        """The question with a tag for each new image and frame: where it has one, else before it.

        Raises:
            ValueError: the tags of new videos and images are not those of what was added.
        """
        tags = [new.tag for new in self._new]
        if VIDEO_TAG not in tags or VIDEO_TAG not in question:
            has_tags = IMAGE_TAG in question
            return question if has_tags else "".join(new.tags for new in self._new) + question
        if _TAG.findall(question) != tags:
            raise ValueError(
                f"the question's tags are {' '.join(_TAG.findall(question))}, but {' '.join(tags)} "
                "came with it. Write them in this order, or none"
            )
        first, *pieces = question.split(VIDEO_TAG)
        frames = [new.tags for new in self._new if new.tag == VIDEO_TAG]
        return first + "".join(
            tags + piece.removeprefix("\n") for tags, piece in zip(frames, pieces, strict=True)
        )

    def ask(
        self,
        question: str,
        tell: Callable[[str], None] = lambda text: None,
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> Reply:
        """Put a question.

        Args:
            question: with ``<image>`` where a new image belongs, or without: then the new
                images stand before it.
            tell: gets the answer piece by piece.
            should_stop: asked once a token, from this thread; True ends the answer there, and
                what was said so far is the answer.

        Raises:
            ValueError: no question, or another number of ``<image>`` than new images.
            PromptTooLongError: the model's context leaves no room for an answer.
        """
        begin = time.perf_counter()
        text, room = self._checked(question)
        pixels = None
        if self._tiles:
            pixels = torch.cat(self._tiles).to(self.model.device, self.model.dtype)
        answer_text = AnswerText(self.tokenizer, (self.model.conv_template.stop_str,))
        streamer = _AnswerStreamer(answer_text, tell)
        settings = {**self.settings_for(room), "streamer": streamer}
        if should_stop is not None:
            settings["stopping_criteria"] = StoppingCriteriaList([StopOnRequest(should_stop)])
        answer, history = self.model.chat(
            self.tokenizer,
            pixels,
            text,
            settings,
            history=self.history,
            return_history=True,
            num_patches_list=self._num_patches if self._tiles else None,
        )
        end = time.perf_counter()
        self.history = [*self.history, (history[-1][0], _without_tags(answer))]
        self._new.clear()
        return Reply(
            text=answer,
            num_tokens=streamer.num_tokens,
            seconds=end - begin,
            first_token_seconds=(streamer.first_token or end) - begin,
            ended_by_context=streamer.num_tokens == room,
        )


def _without_tags(answer: str) -> str:
    """An earlier answer for the model: one that spells an image's tag must not become one."""
    return answer.replace(IMAGE_TAG, "image").replace(IMG_CONTEXT_TOKEN, "")
