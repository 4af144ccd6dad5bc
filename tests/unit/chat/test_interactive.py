"""The loop of interactive chat: commands, questions and mistakes, without a model or a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from internvl_chat.chat.interactive import HELP, converse
from internvl_chat.errors import ConfigError


class Session:
    """Remembers what it was asked to do; the file ``bad`` cannot be added."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.history = [("Hi", "Hello")]
        self.media = ["a.jpg"]

    def add_image(self, path: str) -> None:
        if path == "bad":
            raise ConfigError("no image", where=path)
        self.calls.append(("image", path))

    def add_video(self, path: str, *, num_segments: int) -> None:
        self.calls.append(("video", path, num_segments))

    def reset(self) -> None:
        self.calls.append(("reset",))


def talk(*lines: str) -> tuple[Session, list[str], list[str]]:
    """The session, the questions asked and what was told, after ``lines``."""
    session, asked, told = Session(), list[str](), list[str]()
    converse(session, lines, ask=asked.append, tell=told.append, num_segments=4)  # type: ignore[arg-type]
    return session, asked, told


def test_questions_and_commands_go_their_ways() -> None:
    session, asked, told = talk(
        " What? \n", "", "/image  a b.jpg", "/video c.mp4", "/reset", "/help", "/quit", "Never"
    )
    assert asked == ["What?"]
    assert session.calls == [("image", "a b.jpg"), ("video", "c.mp4", 4), ("reset",)]
    assert told == ["image: done", "video: done", "reset: done", HELP]


def test_mistakes_are_told_and_the_conversation_goes_on() -> None:
    _, asked, told = talk("/image", "/image bad", "/nonsense x", "What?")
    assert told == [
        "error: /image needs a file. /image FILE",
        "error: bad: no image",
        "error: unknown command /nonsense. /help lists them.",
    ]
    assert asked == ["What?"]


def test_a_conversation_is_saved_once(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    _, _, told = talk(f"/save {path}", f"/save {path}", f"/save {tmp_path}/no/talk.json")
    turns = [{"question": "Hi", "answer": "Hello"}]
    assert json.loads(path.read_text()) == {"media": ["a.jpg"], "turns": turns}
    assert told == [
        "save: done",
        f"error: /save: {path} exists and is not overwritten. Name another file.",
        f"error: /save: {tmp_path}/no/talk.json cannot be written: No such file or directory",
    ]
