"""A conversation built up anew, and an answer that somebody ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from examples.tiny_model.records import draw
from examples.tiny_model.scene import Scene, Shape
from internvl_chat.chat import load_model
from internvl_chat.chat.session import ChatSession
from internvl_chat.model import get_conv_template
from tests.support.training import ROOT, write_tiny_chat_model

STAR = Shape(kind="star", color="red", x=14, y=14, radius=13.0, fill=(216, 32, 32))
GREEDY = {"max_new_tokens": 40, "do_sample": False}


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random weights: it talks until it is stopped."""
    path = write_tiny_chat_model(tmp_path_factory.mktemp("chat") / "model")
    return load_model(str(path), device="cpu")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model(str(ROOT / "pretrained/internvl-chat-tiny"), device="cpu")


def test_the_answer_ends_where_it_is_stopped(babbler: Any) -> None:
    whole = ChatSession(*babbler, GREEDY).ask("Hello")
    assert whole.num_tokens == 40
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 7

    session = ChatSession(*babbler, GREEDY)
    part = session.ask("Hello", should_stop=should_stop)
    assert part.num_tokens == 7
    assert len(part.text) < len(whole.text)
    assert session.history == [("Hello", part.text)]
    assert ChatSession(*babbler, GREEDY).ask("Hello", should_stop=lambda: False).num_tokens == 40


def test_pieces_are_the_answer_tags_included(tiny: Any, tmp_path: Path) -> None:
    draw(Scene(background=(172, 172, 172), shapes=(STAR,))).save(tmp_path / "star.png")
    session = ChatSession(*tiny, GREEDY)
    session.add_image(str(tmp_path / "star.png"))
    pieces: list[str] = []
    reply = session.ask("Give the box of <ref>red star</ref>.", pieces.append)
    assert reply.text.startswith("<ref>red star</ref><box>[[")
    assert "".join(pieces) == reply.text


def test_pieces_are_the_answer_where_the_stop_string_has_no_token(
    babbler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the stop string is told, nor white space around the answer."""
    model, tokenizer = babbler
    ids = tokenizer(" so <|end|>", add_special_tokens=False)["input_ids"]

    def generate(*args: Any, streamer: Any, **options: Any) -> torch.Tensor:
        streamer.put(torch.zeros(1, 0, dtype=torch.long))
        for token_id in ids:
            streamer.put(torch.tensor([token_id]))
        streamer.end()
        return torch.tensor([ids])

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(model, "conv_template", get_conv_template("phi3-chat"))
    pieces: list[str] = []
    reply = ChatSession(model, tokenizer, GREEDY).ask("Hello", pieces.append)
    assert "".join(pieces) == reply.text == "so"
    assert all(pieces)
    assert reply.num_tokens == len(ids)


def test_a_remembered_conversation_goes_on_like_the_first(tiny: Any, tmp_path: Path) -> None:
    draw(Scene(background=(172, 172, 172), shapes=(STAR,))).save(tmp_path / "star.png")
    Image.new("RGB", (50, 40), (9, 90, 200)).save(tmp_path / "blue.png")
    first = ChatSession(*tiny, GREEDY)
    first.add_image(str(tmp_path / "star.png"))
    shape = first.ask("What shape is red?").text
    first.add_image(str(tmp_path / "blue.png"))
    second = ChatSession(*tiny, GREEDY)
    second.add_image(str(tmp_path / "star.png"))
    second.remember("What shape is red?", shape)
    assert second.history == [("<image>\nWhat shape is red?", "star")]
    second.add_image(str(tmp_path / "blue.png"))
    question = "How many shapes are in the first picture?"
    assert second.ask(question).text == first.ask(question).text
    assert second.history == first.history


def test_prompt_tokens_are_those_that_the_model_reads(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    draw(Scene(background=(172, 172, 172), shapes=(STAR,))).save(tmp_path / "star.png")
    read: list[int] = []
    generate = model.generate

    def counting(pixel_values: Any, input_ids: Any, *args: Any, **options: Any) -> Any:
        read.append(input_ids.shape[1])
        return generate(pixel_values, input_ids, *args, **options)

    monkeypatch.setattr(model, "generate", counting)
    session = ChatSession(model, tokenizer, GREEDY)
    session.add_image(str(tmp_path / "star.png"))
    session.add_image(str(tmp_path / "star.png"))
    told = []
    for question in ("What shape is red?", "Where is the red star?"):
        told.append(session.count_prompt_tokens(question))
        session.ask(question)
    assert told == read


def test_an_answer_that_spells_a_tag_ends_no_conversation(
    babbler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = babbler

    def chat(tokenizer: Any, tiles: Any, question: str, *args: Any, history: Any, **kw: Any) -> Any:
        return "an <image>", [*history, (question, "an <image>")]

    session = ChatSession(model, tokenizer, GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(model, "chat", chat)
        assert session.ask("What?").text == "an <image>"
    assert session.ask("And?").text
    assert session.history[0] == ("What?", "an image")


def test_videos_are_where_their_tags_are(babbler: Any, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    session = ChatSession(*babbler, GREEDY)
    session.add_image(str(tmp_path / "a.png"))
    session.add_video(str(tmp_path), num_segments=2)
    with pytest.raises(ValueError, match="tags are <video> <image>, but <image> <video> came with"):
        session.take("<video> or <image>?")
    prompt = session.take("<image> or\n<video>\nWhich?")
    assert prompt.text == "<image> or\nFrame1: <image>\nFrame2: <image>\nWhich?"
    assert prompt.num_patches == [1, 1, 1]
    session.add_image(str(tmp_path / "a.png"))
    assert session.take("A <video>?").text == "<image>\nA <video>?"
