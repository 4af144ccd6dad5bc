"""The shipped tiny model for the server's tests, and one that never ends by itself."""

from __future__ import annotations

import base64
import io
import queue
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from examples.tiny_model.records import draw
from examples.tiny_model.scene import Scene, Shape
from internvl_chat.chat import load_model
from internvl_chat.serve.engine import (
    Engine,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    RequestHandle,
)
from internvl_chat.serve.prompt import Prompter
from internvl_chat.serve.sampling import SamplingParams
from internvl_chat.serve.turns import ChatTurns
from tests.support.training import ROOT

TINY = ROOT / "pretrained/internvl-chat-tiny"
LIMIT_SECONDS = 60
GREEDY = {"do_sample": False}


@lru_cache
def tiny() -> tuple[Any, Any]:
    """Model and tokenizer as they are shipped; not to be changed."""
    return load_model(str(TINY), device="cpu")


@lru_cache
def endless() -> tuple[Any, Any]:
    """The same, but the end of the turn is never the likeliest token."""
    model, tokenizer = load_model(str(TINY), device="cpu")
    with torch.no_grad():
        end = tokenizer.convert_tokens_to_ids(model.conv_template.stop_str)
        model.language_model.lm_head.weight[end] = 0
    return model, tokenizer


def write_endless(directory: Path) -> Path:
    """A checkpoint of :func:`endless`."""
    model, tokenizer = endless()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def shape_image(kind: str = "star", color: str = "red") -> Image.Image:
    """One shape: a star or circle, red or blue; the star top left, the circle bottom right."""
    place = 14 if kind == "star" else 98
    fill = {"red": (216, 32, 32), "blue": (32, 72, 214)}[color]
    shape = Shape(kind=kind, color=color, x=place, y=place, radius=13.0, fill=fill)
    return draw(Scene(background=(172, 172, 172), shapes=(shape,)))


def data_url(image: Image.Image, kind: str = "png") -> str:
    file = io.BytesIO()
    image.save(file, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_part(image: Image.Image, kind: str = "png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image, kind)}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def turns_of(
    turns: tuple[tuple[str, str | None], ...], *, system_message: str | None = None
) -> ChatTurns:
    """A conversation whose images come as tiles."""
    return ChatTurns(turns=turns, images=(), system_message=system_message)


def sampling(
    *, temperature: float = 1.0, top_p: float = 1.0, seed: int | None = None
) -> SamplingParams:
    """Draws from the model's own distribution unless told otherwise."""
    return SamplingParams(temperature=temperature, top_p=top_p, seed=seed)


def chat(
    loaded: tuple[Any, Any],
    turns: tuple[tuple[str, str | None], ...],
    images: list[Image.Image],
    *,
    max_new_tokens: int = 48,
    system: str | None = None,
) -> str:
    """The greedy answer of ``model.chat``, for one conversation alone."""
    model, tokenizer = loaded
    tiles = [Prompter(model, tokenizer).cut(image) for image in images]
    before = model.system_message
    model.system_message = before if system is None else system
    try:
        return model.chat(
            tokenizer,
            torch.cat(tiles) if tiles else None,
            turns[-1][0],
            {**GREEDY, "max_new_tokens": max_new_tokens},
            history=[(question, answer or "") for question, answer in turns[:-1]],
            num_patches_list=[len(one) for one in tiles] if tiles else None,
        )
    finally:
        model.system_message = before


class Told:
    """What an engine told about one question; ``on_piece`` is called with each piece's number."""

    def __init__(self, on_piece: Callable[[int], None] = lambda number: None) -> None:
        self.text = ""
        self.num_pieces = 0
        self._on_piece = on_piece
        self._ends: queue.Queue[Finished | Failed] = queue.Queue()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Piece):
            self.text += event.text
            self.num_pieces += 1
            self._on_piece(self.num_pieces)
        else:
            self._ends.put(event)

    @property
    def has_ended(self) -> bool:
        return not self._ends.empty()

    def end(self) -> Finished | Failed:
        """Wait for the last event."""
        return self._ends.get(timeout=LIMIT_SECONDS)

    def finished(self) -> Finished:
        end = self.end()
        assert isinstance(end, Finished), end
        return end


def put(engine: Engine, question: GenerationRequest) -> tuple[Told, RequestHandle]:
    told = Told()
    return told, engine.submit(question, told)


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when it holds; fail if that takes too long."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
