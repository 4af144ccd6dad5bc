"""Commands as the page shows them: to be read, and to be pasted into a shell as they are. Pure."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 88
"""Characters of a line; only an argument that is longer makes a longer one."""
_INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class Command:
    """Something to type, and what for."""

    title: str
    text: str
    """One or more lines for a POSIX shell."""


def shell_command(arguments: Sequence[str], settings: Mapping[str, str] | None = None) -> str:
    """One line for a shell.

    Args:
        arguments: a program and its arguments.
        settings: its environment.
    """
    given, words = _quoted(arguments, settings or {})
    return " ".join([*given, *words])


def wrapped(arguments: Sequence[str], settings: Mapping[str, str] | None = None) -> str:
    r"""The same over several lines, each but the last ending in a backslash.

    An option stays on one line with its values.

    >>> print(wrapped(["sh", "a.sh", "--x", "1"], {"N": "a b"}))
    N='a b' \
      sh a.sh --x 1
    """
    given, words = _quoted(arguments, settings or {})
    groups = [*given, words[0]]
    for word in words[1:]:
        if word.startswith("-"):
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    lines = [groups[0]]
    for number, group in enumerate(groups[1:], start=1):
        fits = len(lines[-1]) + 1 + len(group) + len(" \\") <= WIDTH
        if fits and number != len(given):  # the program begins a line
            lines[-1] += f" {group}"
        else:
            lines.append(_INDENT + group)
    return " \\\n".join(lines)


def _quoted(arguments: Sequence[str], settings: Mapping[str, str]) -> tuple[list[str], list[str]]:
    # NAME= must stand outside the quotes: 'NAME=a b' would be looked for as a program.
    given = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return given, [shlex.quote(word) for word in arguments]
