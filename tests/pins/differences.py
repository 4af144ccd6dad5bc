"""Two trees of JSON values, or two texts, and where they differ."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

_FILE = re.compile(r"\S+(\.\w+|/)|latest")


def differences(pinned: Any, found: Any, *, where: str, relative: float = 0.0) -> Iterator[str]:
    """A line for each place where ``found`` is not as ``pinned``.

    Args:
        pinned, found: JSON values; texts of several lines are compared line by line.
        where: path of the values, for the lines.
        relative: numbers with a fraction may differ by this share of the larger one.
    """
    if isinstance(pinned, dict) and isinstance(found, dict):
        for name in [*pinned, *(name for name in found if name not in pinned)]:
            inner = f"{where}.{name}"
            if name not in found:
                yield f"{inner}: gone, was {_short(pinned[name])}"
            elif name not in pinned:
                yield f"{inner}: new, {_short(found[name])}"
            else:
                yield from differences(pinned[name], found[name], where=inner, relative=relative)
    elif _are_named(pinned) and _are_named(found):
        yield from differences(_by_name(pinned), _by_name(found), where=where, relative=relative)
    elif isinstance(pinned, list) and isinstance(found, list):
        if len(pinned) != len(found):
            yield f"{where}: {len(found)} values, were {len(pinned)}"
        for number, (one, other) in enumerate(zip(pinned, found, strict=False)):
            yield from differences(one, other, where=f"{where}[{number}]", relative=relative)
    elif isinstance(pinned, str) and isinstance(found, str) and "\n" in pinned + found:
        yield from _changed_lines(pinned, found, where)
    elif not _same(pinned, found, relative):
        yield f"{where}: {_short(found)}, was {_short(pinned)}"


def _are_named(values: Any) -> bool:
    """Whether these are options or names of files: one more must not look like a change of the
    next."""
    return isinstance(values, list) and all(
        "names" in one if isinstance(one, dict) else isinstance(one, str) and _FILE.fullmatch(one)
        for one in values
    )


def _by_name(values: list[Any]) -> dict[str, Any]:
    return {one if isinstance(one, str) else " ".join(one["names"]): one for one in values}


def _same(pinned: Any, found: Any, relative: float) -> bool:
    if isinstance(pinned, float) and isinstance(found, float):
        return math.isclose(pinned, found, rel_tol=relative) or pinned == found
    return type(pinned) is type(found) and pinned == found


def _changed_lines(pinned: str, found: str, where: str) -> Iterator[str]:
    lines = difflib.unified_diff(
        pinned.splitlines(), found.splitlines(), f"{where} was", f"{where} is", lineterm="", n=1
    )
    yield from lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
