"""A conversation of typed lines: questions, and commands that begin with a slash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from internvl_chat.chat.context import PromptTooLongError
from internvl_chat.chat.failures import describe_failure
from internvl_chat.chat.session import ChatSession
from internvl_chat.chat.typed_text import find_file
from internvl_chat.errors import Attempt, ConfigError, printable
from internvl_chat.files import written_aside
from internvl_chat.model.suggestions import suggest

HELP = """\
/image FILE   ask about an image       /video FILE  ask about a video
/reset        forget everything        /save FILE   write the conversation as JSON
/help         this list                /quit        end (or Ctrl-D)"""


def converse(
    session: ChatSession,
    lines: Iterable[str],
    *,
    ask: Callable[[str], None],
    tell: Callable[[str], None],
    num_segments: int,
) -> None:
    """Answer lines until they end; what goes wrong is told, and the conversation goes on.

    Args:
        session: the conversation.
        lines: what the user types; one that begins with a slash is a command (:data:`HELP`).
        ask: answers a question.
        tell: shows what came of a command, and errors.
        num_segments: frames that are taken of a video.
    """
    for line in lines:
        typed = line.strip()
        if typed == "/quit":
            return
        with Attempt() as attempt:
            if typed.startswith("/"):
                tell(_obey(session, *_split(typed), num_segments))
            elif typed:
                ask(typed)
        if isinstance(attempt.error, BrokenPipeError):
            raise attempt.error  # nobody reads the answers any more
        if attempt.error is not None:
            tell(f"error: {_told(attempt.error)}")


def _split(line: str) -> tuple[str, str]:
    """(command, its argument, perhaps with spaces in it)."""
    command, *rest = line.split(None, 1)
    return command, rest[0].strip() if rest else ""


def _told(err: Exception) -> str:
    text = describe_failure(err)
    if isinstance(err, PromptTooLongError):
        text += " /reset forgets what was said and shown."
    return text


def _obey(session: ChatSession, command: str, argument: str, num_segments: int) -> str:
    """Do what a line with a slash says; returns what to tell the user."""
    with_file: dict[str, Callable[[], object]] = {
        "/image": lambda: session.add_image(find_file(argument)),
        "/video": lambda: session.add_video(find_file(argument), num_segments=num_segments),
        "/save": lambda: _save(session, Path(find_file(argument))),
    }
    alone: dict[str, Callable[[], object]] = {"/reset": session.reset, "/help": lambda: HELP}
    if command not in {*with_file, *alone, "/quit"}:
        known = [*with_file, *alone, "/quit"]
        fix = f"{suggest(command, known, write=str)} /help lists them."
        raise ConfigError(f"unknown command {command}", fix=fix.strip())
    if command in with_file and not argument:
        raise ConfigError(f"{command} needs a file", fix=f"{command} FILE")
    if command not in with_file and argument:
        raise ConfigError(f"{command} takes nothing, not {argument!r}", fix=f"{command} alone.")
    told = (with_file | alone)[command]()
    return told if isinstance(told, str) else f"{command[1:]}: done"


def _save(session: ChatSession, path: Path) -> None:
    turns = [{"question": question, "answer": answer} for question, answer in session.history]
    text = json.dumps({"media": session.media, "turns": turns}, ensure_ascii=False, indent=2)
    try:
        if os.path.lexists(path):
            raise ConfigError(
                f"{path} exists and is not overwritten", where="/save", fix="Name another file."
            )
        with written_aside(path) as aside:
            aside.write_text(printable(text) + "\n", encoding="utf-8")
    except (OSError, ValueError) as err:  # a NUL in the name is a ValueError
        reason = (err.strerror if isinstance(err, OSError) else None) or err
        raise ConfigError(f"{path} cannot be written: {reason}", where="/save") from err
