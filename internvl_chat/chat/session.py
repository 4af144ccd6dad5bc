"""A conversation about images and videos that are added as it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from internvl_chat.chat.answer_text import AnswerText
from internvl_chat.chat.media import image_config_of, load_tiles, load_video
from internvl_chat.config import VideoBackend
from internvl_chat.data.video import expand_video_tag
from internvl_chat.model.constants import IMAGE_TAG, VIDEO_TAG


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


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A first question and its images, as ``model.batch_chat`` takes them."""

    text: str
    """With a tag for each image."""
    tiles: Tensor | None
    """(n, 3, S, S) float32, reading order; ``None`` without images."""
    num_patches: list[int]
    """Tiles of each image."""


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
    video_backend: VideoBackend = "decord"
    """Library that reads video files."""
    _tiles: list[Tensor] = field(default_factory=list)
    _num_patches: list[int] = field(default_factory=list)
    _prefix: str = ""
    """Tags of what was added since the last question."""

    def add_image(self, path: str) -> None:
        """The next question is about this image too.

        Raises:
            BadRecordError: the file cannot be used.
        """
        tiles = load_tiles(path, image_config_of(self.model.config))
        self._add(path, tiles, [len(tiles)], f"{IMAGE_TAG}\n")

    def add_video(self, path: str, *, num_segments: int = 8) -> None:
        """The next question is about this video too.

        Raises:
            BadRecordError: the file cannot be used.
        """
        tiles, counts = load_video(
            path,
            model=self.model,
            num_segments=num_segments,
            video_backend=self.video_backend,
        )
        self._add(path, tiles, counts, expand_video_tag(f"{VIDEO_TAG}\n", len(counts)))

    def _add(self, path: str, tiles: Tensor, counts: list[int], tags: str) -> None:
        self._tiles.append(tiles)
        self._num_patches += counts
        self._prefix += tags
        self.media.append(path)

    def reset(self) -> None:
        """Forget everything."""
        self.history.clear()
        self.media.clear()
        self._tiles.clear()
        self._num_patches.clear()
        self._prefix = ""

    def remember(self, question: str, answer: str) -> None:
        """Take a question and its answer as given, the images added before it included.

        With :meth:`add_image` and :meth:`add_video` this builds up a conversation anew that was
        kept elsewhere.
        """
        self.history = [*self.history, (self._with_tags(question), answer)]
        self._prefix = ""

    def take(self, question: str) -> Prompt:
        """The question with the images added before it; the session forgets them.

        Raises:
            ValueError: an empty question, or another number of ``<image>`` than images.
        """
        _refuse_empty(question)
        text, counts = self._with_tags(question), list(self._num_patches)
        if text.count(IMAGE_TAG) != len(counts):
            raise ValueError(
                f"{text.count(IMAGE_TAG)} {IMAGE_TAG} tags in the question, {len(counts)} images"
            )
        tiles = torch.cat(self._tiles) if self._tiles else None
        self.reset()
        return Prompt(text=text, tiles=tiles, num_patches=counts)

    def count_prompt_tokens(self, question: str) -> int:
        """Tokens that the model would read if this were asked now, image tokens included."""
        turns = [*self.history, (self._with_tags(question), None)]
        prompt = self.model.conv_template.render(turns, self.model.system_message).text
        text = self.tokenizer(prompt.replace(IMAGE_TAG, ""), add_special_tokens=False)
        # Every image has a token before and after it.
        tiles, images = sum(self._num_patches), len(self._num_patches)
        num_image_tokens = tiles * self.model.num_image_token + 2 * images
        return len(text["input_ids"]) + num_image_tokens

    def _with_tags(self, question: str) -> str:
        return question if IMAGE_TAG in question else self._prefix + question

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
            ValueError: an empty question, or another number of ``<image>`` than new images.
        """
        _refuse_empty(question)
        text = self._with_tags(question)
        begin = time.perf_counter()
        pixels = None
        if self._tiles:
            pixels = torch.cat(self._tiles).to(self.model.device, self.model.dtype)
        answer_text = AnswerText(self.tokenizer, (self.model.conv_template.stop_str,))
        streamer = _AnswerStreamer(answer_text, tell)
        settings = {**self.generation, "streamer": streamer}
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
        self.history, self._prefix = history, ""
        return Reply(
            text=answer,
            num_tokens=streamer.num_tokens,
            seconds=end - begin,
            first_token_seconds=(streamer.first_token or end) - begin,
        )


def _refuse_empty(question: str) -> None:
    if not question.strip():
        raise ValueError("the question is empty")
