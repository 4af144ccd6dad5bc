"""The values of a meta JSON's entries, each checked by a function of its own. Pure."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from typing import Any, Literal

from internvl_chat.model.suggestions import suggest

BoxFormat = Literal["keep", "unit_to_1000", "pixel_to_1000"]
BOX_FORMATS: tuple[BoxFormat, ...] = ("keep", "unit_to_1000", "pixel_to_1000")
_LARGEST = 1e15  # of any number in a meta

_Checked = tuple[Any, str | None]
"""(value, None), or (None, what is wrong)."""


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= _LARGEST  # neither NaN nor infinite


def has_controls(text: str) -> bool:
    """Control characters or halves of surrogate pairs: no path or name can be printed with them."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _numeric_string(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _bad_type(key: str, value: object, want: str) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        shown = "a deeply nested value"
    if len(shown) > 80:
        shown = shown[:77] + "..."
    text = f"{key} is {shown}, want {want}."
    if _numeric_string(value) or value in ("true", "false", "True", "False"):
        text += " Remove the quotes."
    return text


def _check_string(key: str, value: object) -> _Checked:
    if isinstance(value, str) and (value or key == "root"):
        if has_controls(value):
            return None, f"{key} holds control characters: {json.dumps(value)}."
        return value, None
    return None, _bad_type(key, value, "a path")


def _check_bool(key: str, value: object) -> _Checked:
    if isinstance(value, bool):
        return value, None
    return None, _bad_type(key, value, "true or false")


def _check_positive(key: str, value: object) -> _Checked:
    if _is_number(value) and value > 0:  # type: ignore[operator]
        return value, None
    return None, _bad_type(key, value, "a number > 0")


def _check_length(key: str, value: object) -> _Checked:
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)  # published metas hold numbers in strings
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value, None
    return None, _bad_type(key, value, "a whole number >= 0 (the number of records)")


def _check_count(key: str, value: object) -> _Checked:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value, None
    return None, _bad_type(key, value, "a whole number >= 1")


def _check_box_format(key: str, value: object) -> _Checked:
    if value in BOX_FORMATS:
        return value, None
    problem = _bad_type(key, value, f"one of {', '.join(BOX_FORMATS)}")
    return None, f"{problem} {suggest(str(value), BOX_FORMATS, cutoff=0.4)}".rstrip()


VALUE_CHECKS: dict[str, Callable[[str, object], _Checked]] = {
    "root": _check_string,
    "annotation": _check_string,
    "data_augment": _check_bool,
    "repeat_time": _check_positive,
    "length": _check_length,
    "max_samples": _check_count,
    "max_dynamic_patch": _check_count,
    "box_format": _check_box_format,
    "weight": _check_positive,
}
"""By key; called with the key and the value."""
