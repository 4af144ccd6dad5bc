"""The body of ``POST /v1/chat/completions``. Pure.

What would change the answer and is not supported is refused, never passed over. ``null`` is the
same as leaving a field out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from internvl_chat.serve.messages import ChatTurns, CheckText, read_messages
from internvl_chat.serve.protocol import RequestError
from internvl_chat.serve.sampling import SamplingParams
from internvl_chat.serve.settings import RequestLimits

MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 256
_READ = (
    "messages",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
)
_HARMLESS = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Said about a request, without a bearing on the answer."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "store": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
"""Fields that may be given with the value that changes nothing."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A checked request."""

    conversation: ChatTurns
    sampling: SamplingParams
    max_tokens: int | None = None
    """None: as many as the context takes."""
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    """A last chunk with the numbers of tokens; with ``stream`` only."""


def parse_request(
    body: bytes, *, model_name: str, limits: RequestLimits, check_text: CheckText
) -> ChatRequest:
    """Read a request.

    Args:
        body: JSON.
        model_name: the only one that is served.
        limits: of the number of pictures.
        check_text: called for every text of the client, with its place.

    Raises:
        RequestError: no JSON, another model, or a field with a value that cannot be followed.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise RequestError(f"the body is not JSON: {err.msg} (column {err.colno})") from err
    if not isinstance(data, dict):
        raise RequestError("the body is no JSON object")
    fields = _Fields({name: value for name, value in data.items() if value is not None})
    fields.refuse_unsupported()
    if fields.values.get("model") != model_name:
        raise RequestError(
            f"model {fields.values.get('model')!r} is not served here, only {model_name!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    conversation = read_messages(fields.values.get("messages"), check_text)
    if len(conversation.images) > limits.max_images:
        raise RequestError(
            f"{len(conversation.images)} pictures; this server takes {limits.max_images} a request "
            "(--max-images)",
            status=413,
            param="messages",
        )
    stream = fields.flag("stream")
    return ChatRequest(
        conversation=conversation,
        sampling=SamplingParams(
            temperature=fields.number("temperature", 0.0, 2.0, default=1.0),
            top_p=fields.number("top_p", 0.0, 1.0, default=1.0, open_below=True),
            seed=fields.integer("seed", -(2**63), 2**63 - 1),
        ),
        max_tokens=fields.max_tokens(),
        stop=fields.stop(),
        stream=stream,
        include_usage=fields.include_usage(stream),
    )


@dataclass(frozen=True)
class _Fields:
    values: dict[str, Any]

    def refuse_unsupported(self) -> None:
        for name, value in self.values.items():
            allowed = _ONLY.get(name, ())
            if name in _READ or name in _HARMLESS or any(_same(value, one) for one in allowed):
                continue
            hint = f"; it may be left out or {orjson.dumps(allowed[0]).decode()}" if allowed else ""
            raise RequestError(
                f"{name} is not supported by this server{hint}",
                param=name,
                code="unsupported_parameter",
            )

    def number(
        self, name: str, low: float, high: float, *, default: float, open_below: bool = False
    ) -> float:
        value = self.values.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (open_below and value == low):
            begin = "above " if open_below else ""
            raise RequestError(
                f"{name} is {value!r}, want a number from {begin}{low:g} to {high:g}", param=name
            )
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise RequestError(
                f"{name} is {value!r}, want a whole number from {low} to {high}", param=name
            )
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise RequestError(f"{name} is {value!r}, want true or false", param=name)
        return value

    def max_tokens(self) -> int | None:
        old = self.integer("max_tokens", 1, 2**31)
        new = self.integer("max_completion_tokens", 1, 2**31)
        if old is not None and new is not None and old != new:
            raise RequestError(
                f"max_tokens is {old} and max_completion_tokens is {new}; give one of them",
                param="max_tokens",
            )
        return old if new is None else new

    def stop(self) -> tuple[str, ...]:
        value = self.values.get("stop", [])
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(
            isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops
        ):
            raise RequestError(
                f"stop: want a string or a list of strings of 1 to {MAX_STOP_CHARACTERS} "
                "characters",
                param="stop",
            )
        if len(stops) > MAX_STOPS:
            raise RequestError(f"stop: {len(stops)} strings, at most {MAX_STOPS}", param="stop")
        return tuple(stops)

    def include_usage(self, stream: bool) -> bool:
        options = self.values.get("stream_options")
        if options is None:
            return False
        if not stream:
            raise RequestError("stream_options needs stream: true", param="stream_options")
        if not isinstance(options, dict):
            raise RequestError("stream_options: want an object", param="stream_options")
        given = {name: value for name, value in options.items() if value is not None}
        include = given.pop("include_usage", False)
        given = {name: value for name, value in given.items() if value is not False}
        if given or not isinstance(include, bool):
            raise RequestError(
                "stream_options: only include_usage, true or false, is supported",
                param="stream_options",
            )
        return include


def _same(value: Any, other: Any) -> bool:
    """Equal in JSON, where true is no 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
