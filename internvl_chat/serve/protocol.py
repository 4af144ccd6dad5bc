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
                    raise refused(text, field=name, code=UNSUPPORTED)
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
        raise refused(text, code=UNSUPPORTED)
    return value


class ImageUrl(BaseModel):
    """Where an image is."""

    url: str
    detail: Annotated[Any, AfterValidator(_check_detail)] = None


class ImagePart(BaseModel):
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


class StreamOptions(_Object):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    """A last chunk with the numbers of tokens."""


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
        shape(lambda value: isinstance(value, list) and value, "a list with at least one message"),
    ]
    max_tokens: _Tokens | None = None
    """None: as many as the context takes."""
    max_completion_tokens: _Tokens | None = None
    """The newer name of ``max_tokens``."""
    temperature: Annotated[float, Field(ge=0, le=2), want("a number from 0 to 2")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1), want("a number from above 0 to 1")] = 1.0
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
        allowed = _NEUTRAL.get(name, ())
        if name in _WITHOUT_BEARING or any(_same(value, one) for one in allowed):
            return None
        return f"; it may be left out or {orjson.dumps(allowed[0]).decode()}" if allowed else ""

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
        raise refusal(err) from err
