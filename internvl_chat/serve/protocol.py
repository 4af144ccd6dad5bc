"""OpenAI's chat completions: requests as they are checked, replies as they are sent. No HTTP here.

The models hold what this server follows. What would change an answer and is not supported is
refused, never passed over; ``null`` is the same as leaving a field out. :func:`_refusal` turns what
pydantic found into the one error that a client gets, in words of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from internvl_chat.model.constants import IMAGE_TAG

MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 256
DONE: Final = b"data: [DONE]\n\n"
"""What ends a stream."""

CheckText = Callable[[str, str], None]
"""Called with what a client wrote and where; raises RequestError if it must not stand there."""

# ---------------------------------------------------------------------- errors

_CODES: Final = {401: "invalid_api_key", 404: "not_found", 413: "too_large", 429: "queue_full"}
_UNSUPPORTED: Final = "unsupported_parameter"


class RequestError(Exception):
    """A request that gets an error instead of an answer.

    Args:
        message: what is wrong and how to mend it.
        status: of HTTP.
        param: the part of the request, such as ``messages[0].content``.
        code: short name for programs; by default from ``status``.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code or _CODES.get(status)

    def body(self) -> dict[str, Any]:
        """The JSON in place of an answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def _want(text: str) -> WrapValidator:
    """Whatever is wrong with a value, say what it should be."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as err:
            raise PydanticCustomError("want", text) from err

    return WrapValidator(check)


def _shape(is_right: Callable[[Any], object], text: str) -> BeforeValidator:
    """Say what a value should be unless it looks like it; what is inside is checked afterwards."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise PydanticCustomError("want", text)
        return value

    return BeforeValidator(check)


def _refused(text: str, *, field: str = "", code: str = "") -> PydanticCustomError:
    """An error about a field of the object that is being checked, or about the value itself."""
    return PydanticCustomError("refused", "{text}", {"text": text, "field": field, "code": code})


def _refusal(err: ValidationError) -> RequestError:
    """The first error, with its place as ``messages[0].content``."""
    first = err.errors(include_url=False)[0]
    context = first.get("ctx", {})
    steps = [step for step in first["loc"] if not str(step).startswith("<")]  # tags of unions
    steps += [context["field"]] if context.get("field") else []
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[1:]
    if first["type"] == "refused":
        return RequestError(f"{param} {first['msg']}", param=param, code=context["code"] or None)
    value = first["input"]
    told = f" is {value!r}," if isinstance(value, str | int | float) else ":"
    want = f"want {first['msg']}" if first["type"] == "want" else first["msg"]
    return RequestError(f"{param}{told} {want}", param=param)


# ---------------------------------------------------------------------- requests


class _Object(BaseModel):
    """An object that a client sent: fields that change nothing are passed over, others refused."""

    model_config = ConfigDict(strict=True, frozen=True)

    @classmethod
    def _objection(cls, name: str, value: Any) -> str | None:
        """What to add to the refusal of a field without a declaration; None lets it pass."""
        return "" if value else None

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise PydanticCustomError("want", "an object")
        for name, value in data.items():
            if name not in cls.model_fields and value is not None:
                hint = cls._objection(name, value)
                if hint is not None:
                    text = f"is not supported by this server{hint}"
                    raise _refused(text, field=name, code=_UNSUPPORTED)
        return {
            name: data.get(name)
            for name, field in cls.model_fields.items()
            if field.is_required() or data.get(name) is not None
        }


class TextPart(BaseModel):
    """``{"type": "text", ...}``."""

    text: str


def _check_detail(value: str | None) -> str | None:
    if value not in (None, "auto"):
        text = 'takes only "auto"; the checkpoint says how images are cut'
        raise _refused(text, code=_UNSUPPORTED)
    return value


class ImageUrl(BaseModel):
    """Where an image is."""

    url: str
    detail: Annotated[Any, AfterValidator(_check_detail)] = None


class ImagePart(BaseModel):
    """``{"type": "image_url", ...}``."""

    image_url: Annotated[
        ImageUrl,
        _shape(
            lambda value: isinstance(value, dict) and isinstance(value.get("url"), str),
            '{"url": "data:image/...;base64,..."}',
        ),
    ]


def _kind_of_part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "<text>"
    return "<image_url>" if kind == "image_url" else None


def _kind_of_content(content: Any) -> str | None:
    if isinstance(content, str):
        return "<text>"
    return "<parts>" if isinstance(content, list) and content else None


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    Discriminator(
        _kind_of_part,
        custom_error_type="want",
        custom_error_message='{"type": "text", "text": "..."} or '
        '{"type": "image_url", "image_url": {"url": "..."}}',
    ),
]


class Message(_Object):
    """One message. Answers may be sent back as they came, with fields that are empty."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"], _want("system, user or assistant")
    ]
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[Part], Field(fail_fast=True), Tag("<parts>")],
        Discriminator(
            _kind_of_content,
            custom_error_type="want",
            custom_error_message="a string or a list of parts",
        ),
    ]


class StreamOptions(_Object):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    """A last chunk with the numbers of tokens."""


def _check_number_of_stops(stops: list[str]) -> list[str]:
    if len(stops) > MAX_STOPS:
        raise _refused(f"has {len(stops)} strings, at most {MAX_STOPS} are taken")
    return stops


_Tokens = Annotated[int, Field(ge=1, le=2**31), _want(f"a whole number from 1 to {2**31}")]
_Seed = Annotated[
    int,
    Field(ge=-(2**63), lt=2**63),
    _want(f"a whole number from {-(2**63)} to {2**63 - 1}"),
]
_WITHOUT_BEARING: Final = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Said about a request; the answer is the same."""
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
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


class ChatCompletionRequest(_Object):
    """The body of ``POST /v1/chat/completions``; the defaults are OpenAI's."""

    model: str
    messages: Annotated[
        list[Message],
        Field(fail_fast=True),
        _shape(lambda value: isinstance(value, list) and value, "a list with at least one message"),
    ]
    max_tokens: _Tokens | None = None
    """None: as many as the context takes."""
    max_completion_tokens: _Tokens | None = None
    """The newer name of ``max_tokens``."""
    temperature: Annotated[float, Field(ge=0, le=2), _want("a number from 0 to 2")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1), _want("a number from above 0 to 1")] = 1.0
    seed: _Seed | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
        Field(fail_fast=True),
        _want(f"a string or a list of strings of 1 to {MAX_STOP_CHARACTERS} characters"),
        AfterValidator(_check_number_of_stops),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = []
    stream: Annotated[bool, _want("true or false")] = False
    stream_options: Annotated[
        StreamOptions | None, _want("an object; only include_usage, true or false, is supported")
    ] = None

    @classmethod
    def _objection(cls, name: str, value: Any) -> str | None:
        allowed = _NEUTRAL.get(name, ())
        if name in _WITHOUT_BEARING or any(_same(value, one) for one in allowed):
            return None
        return f"; it may be left out or {orjson.dumps(allowed[0]).decode()}" if allowed else ""

    @model_validator(mode="after")
    def _check_together(self) -> ChatCompletionRequest:
        old, new = self.max_tokens, self.max_completion_tokens
        if None not in (old, new) and old != new:
            text = f"is {old} and max_completion_tokens is {new}; give one of them"
            raise _refused(text, field="max_tokens")
        if self.stream_options is not None and not self.stream:
            raise _refused("needs stream: true", field="stream_options")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Bound of the answer by either of its names."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream tells the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


def _same(value: Any, other: Any) -> bool:
    """Equal in JSON, where true is no 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def read_request(body: bytes, model_name: str) -> ChatCompletionRequest:
    """Read a request.

    Args:
        body: JSON.
        model_name: the only one that is served.

    Raises:
        RequestError: no JSON, another model, or a field with a value that cannot be followed.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise RequestError(f"the body is not JSON: {err.msg} (column {err.colno})") from err
    if not isinstance(data, dict):
        raise RequestError("the body is no JSON object")
    if data.get("model") != model_name:
        raise RequestError(
            f"model {data.get('model')!r} is not served here, only {model_name!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    try:
        return ChatCompletionRequest.model_validate(data)
    except ValidationError as err:
        raise _refusal(err) from err


# ---------------------------------------------------------------------- messages -> turns


@dataclass(frozen=True, kw_only=True)
class ChatTurns:
    """What was said so far; the last question waits for its answer."""

    turns: tuple[tuple[str, str | None], ...]
    """(question, answer) pairs with one ``<image>`` tag per image; the last answer is None."""
    image_urls: tuple[str, ...]
    """In reading order."""
    system_message: str | None
    """None takes the checkpoint's own."""


def read_turns(messages: Sequence[Message], check_text: CheckText) -> ChatTurns:
    """Pair questions and answers.

    An image part becomes an ``<image>`` tag where it stands; parts are joined by line breaks, as
    the training data has them (``<image>\\nquestion``).

    Args:
        messages: at least one.
        check_text: called for every text of the client, with its place.

    Raises:
        RequestError: another order than system?, (user, assistant)*, user, or an image in a message
            of somebody else than the user.
    """
    urls: list[str] = []
    texts = [
        _text(message, f"messages[{number}].content", check_text, urls)
        for number, message in enumerate(messages)
    ]
    first = int(messages[0].role in ("system", "developer"))
    for number, message in enumerate(messages[first:], start=first):
        role = ("user", "assistant")[(number - first) % 2]
        where = f"messages[{number}]"
        if message.role != role:
            raise RequestError(
                f"{where}: want a message of the {role} here, got one of the {message.role}. The "
                "order is system (or none), then user and assistant by turns",
                param=where,
            )
        if role == "user" and not texts[number].strip():
            raise RequestError(f"{where}.content is empty", param=f"{where}.content")
    questions, answers = texts[first::2], texts[first + 1 :: 2]
    if len(questions) == len(answers):
        raise RequestError("messages: the last one must be the user's", param="messages")
    return ChatTurns(
        turns=tuple(zip(questions, [*answers, None], strict=True)),
        image_urls=tuple(urls),
        system_message=texts[0] if first else None,
    )


def _text(message: Message, where: str, check_text: CheckText, urls: list[str]) -> str:
    """A message's text with its tags; the URLs of its images are added to ``urls``."""
    if isinstance(message.content, str):
        check_text(message.content, where)
        return message.content
    pieces = []
    for number, part in enumerate(message.content):
        place = f"{where}[{number}]"
        if isinstance(part, TextPart):
            check_text(part.text, f"{place}.text")
            pieces.append(part.text)
        elif message.role == "user":
            urls.append(part.image_url.url)
            pieces.append(IMAGE_TAG)
        else:
            raise RequestError(f"{place}: only messages of the user hold images", param=place)
    return "\n".join(pieces)


# ---------------------------------------------------------------------- replies


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
    usage: Usage | None
    """Of the last chunk, if it was asked for."""


def count_usage(num_prompt: int, num_answer: int) -> Usage:
    """Tokens of prompt and answer, and their sum."""
    total = num_prompt + num_answer
    return Usage(prompt_tokens=num_prompt, completion_tokens=num_answer, total_tokens=total)


def model_list(name: str, created: int) -> dict[str, Any]:
    """Body of ``GET /v1/models``; ``created`` in seconds since 1970."""
    model = {"id": name, "object": "model", "created": created, "owned_by": "internvl-chat"}
    return {"object": "list", "data": [model]}


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
