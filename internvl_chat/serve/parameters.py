"""Keywords of OpenAI's chat completions that are not followed: which values may be said anyway.

A keyword stands in one table: what says something *about* a request has no effect on its answer,
whatever its value; what would change the answer may be given with the value that changes nothing.
Everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_string, value.values()))


def _is_prediction(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str | list)


_STRING: Final = {"type": "string"}
_STRINGS: Final = {"type": "object", "additionalProperties": _STRING}
_RETENTIONS: Final = ("in_memory", "24h")
_PREDICTION: Final = {
    "type": "object",
    "required": ["content"],
    "properties": {"content": {"type": ["string", "array"]}},
}

WITHOUT_EFFECT: Final[dict[str, tuple[Callable[[Any], bool], str, dict[str, Any]]]] = {
    "user": (_is_string, "a string", _STRING),
    "safety_identifier": (_is_string, "a string", _STRING),
    "metadata": (_is_metadata, "an object of strings", _STRINGS),
    "prompt_cache_key": (_is_string, "a string", _STRING),
    "prompt_cache_options": (_is_object, "an object", {"type": "object"}),
    "prompt_cache_retention": (
        _RETENTIONS.__contains__,
        "in_memory or 24h",
        {"enum": list(_RETENTIONS)},
    ),
    "prediction": (_is_prediction, '{"type": "content", "content": "..."}', _PREDICTION),
}
"""Said about a request, or to make its answer faster; the answer is the same. A keyword has its
check, what it should be in words, and as a JSON schema."""

NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
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
    "parallel_tool_calls": (False,),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    "audio": (),
    "moderation": (),
    "web_search_options": (),  # even an empty object asks for a search
}
"""The values that change nothing; of some there is none."""


def objection(name: str, value: Any) -> str | None:
    """Why a keyword with this value is refused, to follow its name; None lets it pass.

    Args:
        name: of a keyword that the server does not follow, OpenAI's or another.
        value: as JSON gives it, not null.
    """
    if name in WITHOUT_EFFECT:
        is_right, wanted, _ = WITHOUT_EFFECT[name]
        return None if is_right(value) else f"has no effect here, but want {wanted}"
    if name not in NEUTRAL:
        return None if is_empty(value) else "is not supported by this server"
    allowed = NEUTRAL[name]
    if any(_same(value, one) for one in allowed):
        return None
    hint = (
        f"it may be left out or {orjson.dumps(allowed[0]).decode()}" if allowed else "leave it out"
    )
    return f"is not supported by this server; {hint}"


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: ``""``, ``[]`` or ``{}``."""
    return isinstance(value, str | list | dict) and not value


def _same(value: Any, other: Any) -> bool:
    """Equal in JSON, where true is no 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
