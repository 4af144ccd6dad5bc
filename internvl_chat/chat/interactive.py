"""A conversation of typed lines: questions, and commands that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from internvl_chat.chat.session import ChatSession
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import ConfigError

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
        command, _, argument = line.strip().partition(" ")
        if command == "/quit":
            return
        try:
            if command.startswith("/"):
                tell(_obey(session, command, argument.strip(), num_segments))
            elif command:
                ask(line.strip())
        except (BadRecordError, ConfigError) as err:
            tell(f"error: {err}")


def _obey(session: ChatSession, command: str, argument: str, num_segments: int) -> str:
    """Do what a line with a slash says; returns what to tell the user."""
    actions: dict[str, Callable[[], object]] = {
        "/image": lambda: session.add_image(argument),
        "/video": lambda: session.add_video(argument, num_segments=num_segments),
        "/reset": session.reset,
        "/save": lambda: _save(session, Path(argument)),
        "/help": lambda: HELP,
    }
    if command not in actions:
        raise ConfigError(f"unknown command {command}", fix="/help lists them.")
    if command in ("/image", "/video", "/save") and not argument:
        raise ConfigError(f"{command} needs a file", fix=f"{command} FILE")
    told = actions[command]()
    return told if isinstance(told, str) else f"{command[1:]}: done"


def _save(session: ChatSession, path: Path) -> None:
    turns = [{"question": question, "answer": answer} for question, answer in session.history]
    text = json.dumps({"media": session.media, "turns": turns}, ensure_ascii=False, indent=2)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError as err:
        raise ConfigError(
            f"{path} exists and is not overwritten", where="/save", fix="Name another file."
        ) from err
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror}", where="/save") from err
