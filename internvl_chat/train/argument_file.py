"""A YAML or JSON file of arguments -> the words that the command line would have.

The command line has no types of its own: each flag reads its text. So a value reaches it as it is
written, and what YAML 1.1 makes of bare words (``no`` is false, ``1e-5`` is text, ``010`` is 8,
``1:30`` is 90, ``2024-01-01`` is a date) does not come between. Within a nested object, which
becomes JSON, words are read as people mean them.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

import yaml

FILE_SUFFIXES: Final = (".yaml", ".yml", ".json")
EMPTY: Final = "\0empty"
"""Stands for a key without a value: whether that says anything depends on the argument."""
_NULLS: Final = ("", "~", "null", "Null", "NULL")
_TRUE: Final = ("true", "yes", "on")
_FALSE: Final = ("false", "no", "off")
_INTEGER: Final = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_OTHER_BASE: Final = re.compile(r"[-+]?0(?:x[0-9a-fA-F]+|o[0-7]+|b[01]+)")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)


class _Word(str):
    """A value that stands in the file without quotes."""


class _TwiceError(yaml.YAMLError):
    """A key stands twice in one object."""


class _Loader(yaml.SafeLoader):
    """YAML whose bare words stay words; merge keys work, a key that stands twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the library's own attribute
        "<": [("tag:yaml.org,2002:merge", re.compile(r"<<\Z"))]
    }

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        is_bare = isinstance(node, yaml.ScalarNode) and node.style is None
        return _Word(value) if is_bare and isinstance(value, str) else value

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            line = key.start_mark.line + 1
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name in seen and name != "<<":
                raise _TwiceError(f"{name!r} stands in line {seen[name]} and in line {line}")
            seen[name] = line
        return super().construct_mapping(node, deep=deep)


def _construct_text(loader: _Loader, node: Any) -> Any:
    return loader.construct_scalar(node)


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)


def with_file(argv: list[str], problems: list[str]) -> list[str]:
    """Put a leading argument file's values before the flags, so that the flags win.

    Args:
        argv: of the command line.
        problems: what is wrong with the file is added to it.
    """
    if not argv or argv[0].startswith("--") or not argv[0].lower().endswith(FILE_SUFFIXES):
        return argv
    path = Path(argv[0])
    loaded = _loaded(path, problems)
    words: list[str] = []
    for name, value in (loaded or {}).items():
        if not isinstance(name, str):
            problems.append(f"{path}: {name!r} is no name of an argument")
        elif _is_null(value):
            words += [f"--{name}", EMPTY]
        else:
            words += _words(name, value)
    return words + argv[1:]


def _loaded(path: Path, problems: list[str]) -> dict[Any, Any] | None:
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as err:
        problems.append(f"{path}: cannot be read ({getattr(err, 'strerror', None) or err})")
        return None
    try:
        loaded = yaml.load(raw, Loader=_Loader)
    except _TwiceError as err:
        problems.append(f"{path}: {err}. Keep one.")
        return None
    except (yaml.YAMLError, RecursionError, ValueError) as err:
        problems.append(f"{path}: neither YAML nor JSON ({' '.join(str(err).split())})")
        return None
    if not isinstance(loaded, dict):
        kind = "nothing" if _is_null(loaded) else "a list" if isinstance(loaded, list) else "text"
        problems.append(f"{path}: want an object of argument: value, got {kind}")
        return None
    return loaded


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, _Word) and value in _NULLS)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(_typed(value))}"]
    if isinstance(value, list):
        return [f"--{name}", *map(_text, value)]
    return [f"--{name}={_text(value)}"]


def _text(value: Any) -> str:
    """One value as the command line would have it."""
    if isinstance(value, (dict, list)):
        return json.dumps(_typed(value))
    if isinstance(value, _Word):
        if _OTHER_BASE.fullmatch(value):
            return str(int(value, 0))
        if value.startswith("~/"):  # a shell would have written it out
            return os.path.expanduser(value)
        special = _SPECIAL.fullmatch(value)
        return f"{special[1]}{special[2].lower()}" if special else str(value)
    return str(value)


def _typed(value: Any) -> Any:
    """A nested value for JSON: bare words become numbers, truths and null."""
    if isinstance(value, dict):
        return {str(key): _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    if not isinstance(value, _Word):
        return value
    if value in _NULLS:
        return None
    word = value.lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    if _INTEGER.fullmatch(value):
        return int(value)
    if _OTHER_BASE.fullmatch(value):
        return int(value, 0)
    return float(value) if _FLOAT.fullmatch(value) else str(value)
