"""A conversation about pictures and videos that are added as it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from ..data.constants import IMAGE_TAG, VIDEO_TAG
from ..data.video import expand_video_tag
from .media import image_settings, load_tiles, load_video


class _Teller(TextStreamer):
    """Hands text over as it becomes certain, and counts tokens."""

    def __init__(self, tokenizer: Any, tell: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._tell = tell
        self.num_tokens = 0
        self.first_token: float | None = None

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.num_tokens += value.numel()
            self.first_token = self.first_token or time.perf_counter()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._tell(text)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer and what it took."""

    text: str
    num_tokens: int
    seconds: float
    """From the question to the last token, pictures included."""
    first_token_seconds: float


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
    _tiles: list[Tensor] = field(default_factory=list)
    _num_patches: list[int] = field(default_factory=list)
    _prefix: str = ""
    """Tags of what was added since the last question."""

    def add_image(self, path: str) -> None:
        """The next question is about this picture too.

        Raises:
            BadRecordError: the file cannot be used.
        """
        tiles = load_tiles(path, image_settings(self.model.config))
        self._add(path, tiles, [len(tiles)], f"{IMAGE_TAG}\n")

    def add_video(self, path: str, *, num_segments: int = 8) -> None:
        """The next question is about this video too.

        Raises:
            BadRecordError: the file cannot be used.
        """
        side = image_settings(self.model.config).image_size
        tiles, counts = load_video(path, num_segments=num_segments, image_size=side)
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

    def ask(self, question: str, tell: Callable[[str], None] = lambda text: None) -> Reply:
        """Put a question.

        Args:
            question: with ``<image>`` where a new picture belongs, or without: then the new
                pictures stand before it.
            tell: gets the answer piece by piece.

        Raises:
            ValueError: an empty question, or another number of ``<image>`` than new pictures.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        text = question if IMAGE_TAG in question else self._prefix + question
        begin = time.perf_counter()
        pixels = None
        if self._tiles:
            pixels = torch.cat(self._tiles).to(self.model.device, self.model.dtype)
        teller = _Teller(self.tokenizer, tell)
        answer, history = self.model.chat(
            self.tokenizer,
            pixels,
            text,
            {**self.generation, "streamer": teller},
            history=self.history,
            return_history=True,
            num_patches_list=self._num_patches if self._tiles else None,
        )
        end = time.perf_counter()
        self.history, self._prefix = history, ""
        return Reply(
            text=answer,
            num_tokens=teller.num_tokens,
            seconds=end - begin,
            first_token_seconds=(teller.first_token or end) - begin,
        )
