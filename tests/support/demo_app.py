"""The demo page in this process, for tests over HTTP and in a browser."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
from gradio_client import Client, handle_file

from examples.tiny_model.common import COLORS
from examples.tiny_model.records import draw
from examples.tiny_model.scene import Scene, Shape
from internvl_chat.chat import load_model
from internvl_chat.web.answering import Answering, Checkpoint, GenerationSettings
from internvl_chat.web.conversation import Conversation
from internvl_chat.web.server import Serving
from tests.support.training import ROOT, write_tiny_chat_model

TINY = ROOT / "pretrained/internvl-chat-tiny"
GREYS = ROOT / "tests/unit/data/greys.mp4"
LIMIT_SECONDS = 60
"""Of every wait: far more than is ever needed, so that a fault ends as a failure."""


def load(name: str, path: Path) -> Checkpoint:
    """A checkpoint on the CPU."""
    model, tokenizer = load_model(str(path), device="cpu")
    return Checkpoint(name=name, model=model, tokenizer=tokenizer)


def load_babbler(folder: Path) -> Checkpoint:
    """Random weights: it talks until it is stopped or has said all it may.

    Its context has room for answers that were stopped late, and no machine is so fast that it ends
    2000 tokens before somebody can press Stop: a token takes 4 ms at least.
    """
    path = write_tiny_chat_model(folder / "babbler", llm={"max_position_embeddings": 100_000})
    babbler = load("babbler", path)
    never = threading.Event()

    def pause(*_: object) -> None:
        never.wait(0.004)

    babbler.model.language_model.register_forward_pre_hook(pause)
    return babbler


def draw_shape(path: Path, kind: str, color: str) -> Path:
    """An image that the tiny model knows: one shape, top left."""
    shape = Shape(kind=kind, color=color, x=14, y=14, radius=13.0, fill=COLORS[color])
    draw(Scene(background=(172, 172, 172), shapes=(shape,))).save(path)
    return path


Message = dict[str, Any]


class Recording(Answering):
    """Notes the questions in the order in which they are answered; can hold them back."""

    def __init__(self, *checkpoints: Checkpoint) -> None:
        super().__init__(checkpoints)
        self.started: list[tuple[str, str]] = []
        """Question and name of the conversation's first image."""
        self.going = 0
        self.unfinished = 0
        """Answers that nobody listened to until their end."""
        self.gate = threading.Event()
        self.gate.set()

    def stream(
        self,
        conversation: Conversation,
        generation: GenerationSettings,
        should_stop: Callable[[], bool],
        *,
        drawings: Path,
        box_image: int = 0,
    ) -> Generator[Conversation]:
        """As the parent's."""
        assert conversation.pending is not None
        images = [image.name for image in conversation.images]
        self.started.append((conversation.pending.typed, images[0] if images else ""))
        assert self.gate.wait(LIMIT_SECONDS)
        self.going += 1
        self.unfinished += 1
        try:
            yield from super().stream(
                conversation, generation, should_stop, drawings=drawings, box_image=box_image
            )
            self.unfinished -= 1
        finally:
            self.going -= 1


def wait_until(holds: Callable[[], Any], what: str) -> None:
    """Wait for a condition; fails after the limit."""
    never = threading.Event()
    for _ in range(LIMIT_SECONDS * 50):
        if holds():
            return
        never.wait(0.02)
    raise AssertionError(f"waited {LIMIT_SECONDS} s: {what}")


def wait_for_queue(serving: Serving, num_waiting: int) -> None:
    """Until so many questions wait behind the one at the model."""

    def there() -> bool:
        status = httpx.get(f"{serving.url}gradio_api/queue/status").json()
        return bool(status["queue_size"] == num_waiting)

    wait_until(there, f"{num_waiting} questions wait")


class Wire:
    """A session without ``gradio_client``: what it sends is sent as it is."""

    def __init__(self, serving: Serving, session: str) -> None:
        self.session = session
        self.client = httpx.Client(base_url=serving.url, timeout=LIMIT_SECONDS)
        dependencies = self.client.get("config").json()["dependencies"]
        self._numbers = {each["api_name"]: each["id"] for each in dependencies}

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def join(self, name: str, *data: Any) -> None:
        """Join the queue."""
        body = {"data": data, "fn_index": self._numbers[name], "session_hash": self.session}
        assert self.client.post("gradio_api/queue/join", json=body).status_code == 200

    def wait_for(self, kind: str) -> Message:
        """Listen until a message of this kind comes, then hang up."""
        address = "gradio_api/queue/data"
        with self.client.stream("GET", address, params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message: Message = json.loads(line.removeprefix("data:"))
                    if message["msg"] == kind:
                        return message
        raise AssertionError(f"no {kind}")


class User:
    """A client with a session of its own."""

    def __init__(self, serving: Serving) -> None:
        # gradio_client tells Hugging Face of its use, whatever its argument analytics_enabled says.
        with (
            mock.patch.dict(os.environ, GRADIO_ANALYTICS_ENABLED="False"),
            mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        ):
            self.client = Client(
                serving.url, verbose=False, download_files=False, analytics_enabled=False
            )

    def ask(self, question: str, *files: Path, num_frames: int = 8) -> None:
        """Have a question checked and shown."""
        message = {"text": question, "files": [handle_file(str(file)) for file in files]}
        self.client.predict(message, num_frames, api_name="/ask")

    def submit(self, max_new_tokens: int = 64, box_image: int = 0) -> Any:
        """Join the queue with it."""
        return self.client.submit(0, 1, max_new_tokens, box_image, api_name="/answer")

    def answer(self, **settings: int) -> list[Message]:
        """Wait for the answer; the (last) chat with it."""
        return chats(self.submit(**settings).result(LIMIT_SECONDS))[-1]

    def say(self, question: str, *files: Path, **settings: int) -> str:
        """Ask and wait; the answer's text."""
        self.ask(question, *files)
        return said(self.answer(**settings))


def chats(outputs: Any) -> list[list[Message]]:
    """The chats of an event's outputs, one for each checkpoint."""
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def said(chat: list[Message]) -> str:
    """Text of the last answer, in lines."""
    lines: list[str] = []
    for message in chat:
        if message["role"] == "user":
            lines.clear()
        else:
            lines += [part["text"] for part in message["content"] if part["type"] == "text"]
    return "\n".join(lines)


def files_of(chat: list[Message], role: str) -> list[str]:
    """Paths of the images in the messages of a role."""
    return [
        part["file"]["path"]
        for message in chat
        if message["role"] == role
        for part in message["content"]
        if part["type"] == "file"
    ]
