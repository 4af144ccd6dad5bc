"""The JSON that goes back, in the shapes of OpenAI's chat completions. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
"""What ends a stream."""


def usage(num_prompt: int, num_answer: int) -> dict[str, int]:
    """Tokens; those of pictures count as the prompt's, the end of the turn as the answer's."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
    }


def model_list(name: str, created: int) -> dict[str, Any]:
    """Body of ``GET /v1/models``; ``created`` in seconds since 1970."""
    model = {"id": name, "object": "model", "created": created, "owned_by": "internvl-chat"}
    return {"object": "list", "data": [model]}


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Makes the replies to one request."""

    id: str
    model: str
    created: int
    """Seconds since 1970."""
    include_usage: bool = False

    def completion(self, text: str, reason: str, used: dict[str, int]) -> dict[str, Any]:
        """The whole answer at once."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": used}

    def opening(self) -> bytes:
        """The first chunk of a stream: who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> bytes:
        """A chunk with some text."""
        return self._chunk({"content": text}, None)

    def closing(self, reason: str, used: dict[str, int]) -> bytes:
        """The last chunks: why the answer ends, its usage if asked for, and the end."""
        chunks = self._chunk({}, reason)
        if self.include_usage:
            head = self._head("chat.completion.chunk")
            chunks += event({**head, "choices": [], "usage": used})
        return chunks + DONE

    def _chunk(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        body = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.include_usage:
            body["usage"] = None
        return event(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
