"""The loop of interactive chat: commands, questions and mistakes, without a model or a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
        if path in ("unforeseen", "full"):
            raise RuntimeError("a kernel\nand its trace") if path == "unforeseen" else MemoryError
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


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("/reset now", "/reset takes nothing, not 'now'. /reset alone."),
        ("/quit please", "/quit takes nothing, not 'please'. /quit alone."),
        ("/help image", "/help takes nothing, not 'image'. /help alone."),
        ("/image\t", "/image needs a file. /image FILE"),
        ("/save", "/save needs a file. /save FILE"),
        ("/imgae a.jpg", "unknown command /imgae. Did you mean /image? /help lists them."),
        ("/", "unknown command /. /help lists them."),
        ("/image unforeseen", "RuntimeError: a kernel"),
        (
            "/image full",
            "the memory is full. Ask about fewer or smaller images, or fewer questions at a time",
        ),
    ],
)
def test_wrong_commands(typed: str, told: str) -> None:
    session, asked, lines = talk(typed, "What?")
    assert lines == [f"error: {told}"]
    assert (session.calls, asked) == ([], ["What?"])


def test_files_are_found_as_people_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a b.jpg", "it's.jpg", "'q'.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"")
    typed = {
        "a b.jpg": "a b.jpg",
        "'a b.jpg'": "a b.jpg",
        '"a b.jpg"': "a b.jpg",
        r"a\ b.jpg": "a b.jpg",
        "it's.jpg": "it's.jpg",
        "'q'.jpg": "'q'.jpg",
        "~/c.jpg": f"{tmp_path}/c.jpg",
        '"~/a b.jpg"': f"{tmp_path}/a b.jpg",
        f"file://{tmp_path}/a%20b.jpg": f"{tmp_path}/a b.jpg",
        "\tc.jpg ": "c.jpg",
        "'gone one.jpg'": "gone one.jpg",
        "~/gone.jpg": f"{tmp_path}/gone.jpg",
        "https://x.org/a.jpg": "https://x.org/a.jpg",
    }
    session, _, told = talk(*(f"/image {name}" for name in typed))
    assert session.calls == [("image", found) for found in typed.values()]
    assert told == ["image: done"] * len(typed)


def test_nobody_reads_on() -> None:
    def ask(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        converse(Session(), ["What?"], ask=ask, tell=print, num_segments=1)  # type: ignore[arg-type]


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
