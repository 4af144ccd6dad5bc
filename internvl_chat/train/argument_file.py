"""A YAML or JSON file of arguments -> the words that the command line would have.

The command line has no types of its own: each flag reads its text. So a value reaches it as it is
written, and what YAML 1.1 makes of bare words (``no`` is false, ``1e-5`` is text, ``010`` is 8,
``1:30`` is 90, ``2024-01-01`` is a date) does not come between. Within a nested object, which
becomes JSON, words are read as people mean them.

A file may be cut into the sections of the help (``model:``, ``lora:``, ...), which say nothing
themselves. Paths are read from where the user stands, as on the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from internvl_chat.train.flags import GROUPS

FILE_SUFFIXES: Final = (".yaml", ".yml", ".json")
EMPTY: Final = "\0empty"
"""Stands for a key without a value: whether that says anything depends on the argument."""
SECTIONS: Final = (*GROUPS, "optimization", "training")
"""Keys that hold arguments instead of a value."""
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


@dataclass(frozen=True)
class Written:
    """A flag with its values as somebody wrote them."""

    flag: str
    """With dashes in front and underscores within; empty for what stands before any flag."""
    values: list[str]
    where: str = ""
    """``run.yaml:3``; empty on the command line."""

    def told(self, problem: str) -> str:
        """The problem with its place."""
        return f"{self.where}: {problem}" if self.where else problem


def names_file(argv: Sequence[str]) -> bool:
    """Whether the first word is a run file."""
    return bool(argv) and not argv[0].startswith("--") and _is_file_name(argv[0])


def _is_file_name(word: str) -> bool:
    return word.lower().endswith(FILE_SUFFIXES)


def written(argv: Sequence[str], problems: list[str]) -> list[Written]:
    """The flags of a leading run file, then those of the command line, which win.

    Args:
        argv: of the command line.
        problems: what is wrong with the file is added to it.
    """
    if not names_file(argv):
        return list(_words_of(argv))
    return [*_of_file(Path(argv[0]), problems), *_words_of(argv[1:])]


def beside_the_file(argv: Sequence[str]) -> Iterator[str]:
    """A sentence for each path of a run file that is to be found from its folder only."""
    if not names_file(argv):
        return
    folder = Path(argv[0]).parent
    for one in _of_file(Path(argv[0]), []):
        path = one.values[0] if one.values else ""
        if (not one.flag.endswith("_path") and one.flag != "--deepspeed") or os.path.isabs(path):
            continue
        if path != EMPTY and not os.path.exists(path) and (folder / path).exists():
            yield one.told(
                f"{path} lies beside the file, but paths are read from where you stand: write "
                f"{folder / path}"
            )


def _words_of(words: Sequence[str]) -> Iterator[Written]:
    """Cut ``--a 1 2 --b=3 --c`` into flags."""
    values: list[str] = []
    flag, started = "", False
    for word in words:
        if word.startswith("--"):
            if started:
                yield Written(flag, values)
            flag, _, rest = word.partition("=")
            values = [rest] if "=" in word else []
            flag, started = _as_flag(flag[2:]), True
        else:
            values, started = [*values, word], True
    if started:
        yield Written(flag, values)


def _as_flag(name: str) -> str:
    return f"--{name.replace('-', '_')}"


def _of_file(path: Path, problems: list[str]) -> Iterator[Written]:
    """What a file says, line by line; sections are opened."""
    seen: dict[str, int] = {}
    for name, value, line in _entries(path, problems):
        where = f"{path}:{line}"
        if not isinstance(name, str):
            problems.append(f"{where}: {name!r} is no name of an argument")
            continue
        flag = _as_flag(name.removeprefix("--"))
        if flag in seen:
            problems.append(
                f"{path}: {name!r} stands in line {seen[flag]} and in line {line}. Keep one."
            )
        else:
            yield Written(flag, [EMPTY] if _is_null(value) else _values(value), where)
        seen[flag] = line


def _entries(path: Path, problems: list[str]) -> Iterator[tuple[Any, Any, int]]:
    """Name, value and line of each argument in a file."""
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as err:
        problems.append(f"{path}: cannot be read ({getattr(err, 'strerror', None) or err})")
        return
    try:
        loader = _Loader(raw)
        node = loader.get_single_node()
        loaded = loader.construct_document(node) if node is not None else None
    except _TwiceError as err:
        problems.append(f"{path}: {err}. Keep one.")
        return
    except (yaml.YAMLError, RecursionError, ValueError) as err:
        problems.append(f"{path}: neither YAML nor JSON ({' '.join(str(err).split())})")
        return
    if not isinstance(loaded, dict):
        kind = "nothing" if _is_null(loaded) else "a list" if isinstance(loaded, list) else "text"
        problems.append(f"{path}: want an object of argument: value, got {kind}")
        return
    lines = _lines(node)
    for name, value in loaded.items():
        line, within = lines.get(name, (1, {}))
        if name in SECTIONS and isinstance(value, dict):
            for inner, setting in value.items():
                yield inner, setting, within.get(inner, (line, {}))[0]
        elif not (name in SECTIONS and _is_null(value)):  # all of a section may be a comment
            yield name, value, line


def _lines(node: Any) -> dict[Any, tuple[int, dict[Any, Any]]]:
    """Key -> its line, and the lines of the keys within it."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {
        key.value: (key.start_mark.line + 1, _lines(value))
        for key, value in node.value
        if isinstance(key, yaml.ScalarNode)
    }


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, _Word) and value in _NULLS)


def _values(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [json.dumps(_typed(value))]
    return [_text(one) for one in value] if isinstance(value, list) else [_text(value)]


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
