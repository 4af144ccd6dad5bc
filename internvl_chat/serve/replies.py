"""OpenAI's chat completions: replies as they are sent. No HTTP here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

DONE: Final = b"data: [DONE]\n\n"
"""What ends a stream."""


class Usage(BaseModel):
    """Tokens; those of images count as the prompt's, the end of the turn as the answer's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Choice(BaseModel):
    index: int = 0
    logprobs: None = None
    finish_reason: str | None
    """``stop`` or ``length``; None before the end."""


class CompletionChoice(_Choice):
    """The whole answer."""

    message: dict[str, str | None]


class ChunkChoice(_Choice):
    """Some of the answer."""

    delta: dict[str, str]


class _Reply(BaseModel):
    id: str
    object: str
    created: int
    """Seconds since 1970."""
    model: str


class ChatCompletion(_Reply):
    """An answer at once."""

    choices: list[CompletionChoice]
    usage: Usage


class ChatCompletionChunk(_Reply):
    """A part of a stream."""

    choices: list[ChunkChoice]
    usage: Usage | None = None
    """Of the last chunk, if it was asked for: then null in the others, else left out."""


def count_usage(num_prompt: int, num_answer: int) -> Usage:
    """Tokens of prompt and answer, and their sum."""
    total = num_prompt + num_answer
    return Usage(prompt_tokens=num_prompt, completion_tokens=num_answer, total_tokens=total)


def model_list(name: str, created: int) -> dict[str, Any]:
    """Body of ``GET /v1/models``; ``created`` in seconds since 1970."""
    return {"object": "list", "data": [model_info(name, created)]}


def model_info(name: str, created: int) -> dict[str, Any]:
    """Body of ``GET /v1/models/NAME``; ``created`` in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "internvl-chat"}


def event(json: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + json + b"\n\n"


@dataclass(frozen=True, kw_only=True)
class ReplyWriter:
    """Writes the replies to one request."""

    id: str
    model: str
    created: int
    """Seconds since 1970."""
    include_usage: bool

    def completion(self, text: str, reason: str, usage: Usage) -> ChatCompletion:
        """The whole answer at once."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = CompletionChoice(message=message, finish_reason=reason)
        return ChatCompletion(**self._head("chat.completion"), choices=[choice], usage=usage)

    def opening(self) -> bytes:
        """The first chunk of a stream: who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """A chunk with some text."""
        return self._chunk({"content": text})

    def closing(self, reason: str, usage: Usage) -> bytes:
        """The last chunks: why the answer ends, its usage if asked for, and the end."""
        last = self._event([], usage) if self.include_usage else b""
        return self._chunk({}, reason) + last + DONE

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> bytes:
        return self._event([ChunkChoice(delta=delta, finish_reason=reason)], None)

    def _event(self, choices: list[ChunkChoice], usage: Usage | None) -> bytes:
        head = self._head("chat.completion.chunk")
        chunk = ChatCompletionChunk(**head, choices=choices, usage=usage)
        without = None if self.include_usage else {"usage"}
        return event(chunk.model_dump_json(exclude=without).encode())

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
