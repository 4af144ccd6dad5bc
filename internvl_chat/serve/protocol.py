"""OpenAI's chat completions: requests as they are checked. No HTTP here.

The models hold what this server follows. What would change an answer and is not supported is
refused, never passed over; ``null`` is the same as leaving a field out.
"""

from __future__ import annotations

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
    model_validator,
)
from pydantic_core import PydanticCustomError

from internvl_chat.serve.parameters import is_empty, objection
from internvl_chat.serve.refusals import (
    UNSUPPORTED,
    RequestError,
    refusal,
    refused,
    shape,
    want,
)

MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 256


class _Object(BaseModel):
    """An object that a client sent: fields that change nothing are passed over, others refused."""

    model_config = ConfigDict(strict=True, frozen=True)

    @classmethod
    def _objection(cls, name: str, value: Any) -> str | None:
        """Why a field without a declaration is refused; None lets it pass."""
        return None if is_empty(value) else "is not supported by this server"

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise PydanticCustomError("want", "an object")
        for name, value in data.items():
            if name not in cls.model_fields and value is not None:
                text = cls._objection(name, value)
                if text is not None:
                    raise refused(text, field=name, code=UNSUPPORTED)
        return {
            name: data.get(name)
            for name, field in cls.model_fields.items()
            if field.is_required() or data.get(name) is not None
        }


class _Part(_Object):
    """A part of a message's content."""

    type: str

    @classmethod
    def _objection(cls, name: str, value: Any) -> str | None:
        if name == "prompt_cache_breakpoint":  # where a cache may end; there is none
            return None
        return super()._objection(name, value)


class TextPart(_Part):
    """``{"type": "text", ...}``."""

    text: Annotated[str, want("a string")]


class ImageUrl(_Object):
    """Where an image is."""

    url: str
    detail: Annotated[
        Literal["auto", "low", "high", "original"] | None, want("auto, low, high or original")
    ] = None
    """OpenAI's sizes of an image; without effect, for the checkpoint says how images are cut."""


class ImagePart(_Part):
    """``{"type": "image_url", ...}``."""

    image_url: Annotated[
        ImageUrl,
        shape(
            lambda value: isinstance(value, dict) and isinstance(value.get("url"), str),
            '{"url": "data:image/...;base64,..."}',
        ),
    ]


def _kind_of_part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return f"<{kind}>" if kind in ("text", "image_url") else None


def _check_kind(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and _kind_of_part(part) is None:
        text = f"is {kind!r}; this server takes parts of the types text and image_url"
        raise refused(text, field="type")
    return part


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
    BeforeValidator(_check_kind),
]


class Message(_Object):
    """One message. Answers may be sent back as they came, with fields that are empty."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"], want("system, user or assistant")
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

    @model_validator(mode="before")
    @classmethod
    def _check_role(cls, data: Any) -> Any:
        """Before the fields that messages of tools have."""
        role = data.get("role") if isinstance(data, dict) else None
        if role in ("tool", "function"):
            raise refused(f"is {role!r}; want system, user or assistant", field="role")
        return data


class StreamOptions(_Object):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    """A last chunk with the numbers of tokens."""
    include_obfuscation: Literal[False] = False
    """Padding that hides the lengths of pieces, which this server does not add."""


def _check_number_of_stops(stops: list[str]) -> list[str]:
    if len(stops) > MAX_STOPS:
        raise refused(f"has {len(stops)} strings, at most {MAX_STOPS} are taken")
    return stops


_Tokens = Annotated[int, Field(ge=1, le=2**31), want(f"a whole number from 1 to {2**31}")]
_Seed = Annotated[
    int,
    Field(ge=-(2**63), lt=2**63),
    want(f"a whole number from {-(2**63)} to {2**63 - 1}"),
]


class ChatCompletionRequest(_Object):
    """The body of ``POST /v1/chat/completions``; the defaults are OpenAI's."""

    model: str
    messages: Annotated[
        list[Message],
        Field(fail_fast=True),
        shape(lambda value: isinstance(value, list) and value, "a list with at least one message"),
    ]
    max_tokens: _Tokens | None = None
    """None: as many as the context takes."""
    max_completion_tokens: _Tokens | None = None
    """The newer name of ``max_tokens``."""
    temperature: Annotated[float, Field(ge=0, le=2), want("a number from 0 to 2")] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1), want("a number from 0 to 1")] = 1.0
    seed: _Seed | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
        Field(fail_fast=True),
        want(f"a string or a list of strings of 1 to {MAX_STOP_CHARACTERS} characters"),
        AfterValidator(_check_number_of_stops),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = []
    stream: Annotated[bool, want("true or false")] = False
    stream_options: Annotated[
        StreamOptions | None, want("an object; only include_usage, true or false, is supported")
    ] = None

    @classmethod
    def _objection(cls, name: str, value: Any) -> str | None:
        return objection(name, value)

    @model_validator(mode="after")
    def _check_together(self) -> ChatCompletionRequest:
        old, new = self.max_tokens, self.max_completion_tokens
        if None not in (old, new) and old != new:
            text = f"is {old} and max_completion_tokens is {new}; give one of them"
            raise refused(text, field="max_tokens")
        if self.stream_options is not None and not self.stream:
            raise refused("needs stream: true", field="stream_options")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Bound of the answer by either of its names."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream tells the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


def require_model(asked: Any, model_name: str) -> None:
    """Refuse to answer for another model.

    Raises:
        RequestError: 400 if none is named, 404 if it is another one.
    """
    if not isinstance(asked, str):
        code = "missing_required_parameter" if asked is None else None
        raise RequestError(f"model: want the name {model_name!r}", param="model", code=code)
    if asked != model_name:
        raise RequestError(
            f"model {asked[:200]!r} is not served here, only {model_name!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


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
    require_model(data.get("model"), model_name)
    try:
        return ChatCompletionRequest.model_validate(data)
    except ValidationError as err:
        raise refusal(err) from err
