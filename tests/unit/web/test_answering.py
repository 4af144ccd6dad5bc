"""Questions to checkpoints: streamed, ended, replayed, side by side."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from internvl_chat.chat import load_model
from internvl_chat.chat.session import ChatSession
from internvl_chat.web.answering import (
    DEFAULT_GENERATION,
    Answering,
    Checkpoint,
    GenerationSettings,
)
from internvl_chat.web.conversation import Answer, Conversation, MediaItem, QuestionError, Turn
from internvl_chat.web.drawing import COLOURS
from tests.support.training import write_tiny_chat_model


@dataclass(frozen=True, kw_only=True)
class Scripted(Checkpoint):
    """Says the words it was given, and keeps what it was asked."""

    words: tuple[str, ...] = ()
    asked: list[Any]

    def answer(
        self,
        past: Sequence[tuple[Turn, Answer]],
        turn: Turn,
        generation: GenerationSettings,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> Answer:
        self.asked.append((list(past), turn))
        said = ""
        for word in self.words:
            if should_stop():
                break
            tell(word)
            said += word
        return Answer(text=said, stopped=should_stop())


def scripted(name: str, *words: str, pad2square: bool = False) -> Scripted:
    model = SimpleNamespace(config=SimpleNamespace(pad2square=pad2square))
    return Scripted(name=name, model=model, tokenizer=None, words=words, asked=[])


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random weights: talks until it is stopped."""
    path = write_tiny_chat_model(tmp_path_factory.mktemp("chat") / "model")
    model, tokenizer = load_model(str(path), device="cpu")
    return Checkpoint(name="babbler", model=model, tokenizer=tokenizer)


def test_both_get_the_question_and_each_its_own_past(tmp_path: Path) -> None:
    one, two = scripted("one", "a", "b"), scripted("two", "c")
    answering = Answering([one, two])
    assert answering.names == ["one", "two"]
    conversation = Conversation().ask("First?", [])
    *_, conversation = answering.stream(conversation, DEFAULT_GENERATION, never, drawings=tmp_path)
    assert [a.text for a in conversation.turns[0].answers] == ["ab", "c"]
    *steps, end = answering.stream(
        conversation.ask("Second?", []), DEFAULT_GENERATION, never, drawings=tmp_path
    )
    for checkpoint, earlier in ((one, "ab"), (two, "c")):
        past, turn = checkpoint.asked[1]
        assert turn.typed == "Second?"
        assert [(t.typed, a.text) for t, a in past] == [("First?", earlier)]
    assert not any(a.finished for step in steps for a in step.turns[1].answers)
    assert end.pending is None


def test_what_has_no_text_is_not_shown_to_the_model_again(tmp_path: Path) -> None:
    one = scripted("one", "yes")
    conversation = Conversation().ask("First?", []).answered([Answer(problem="Too long.")])
    conversation = conversation.ask("Second?", []).answered([Answer(stopped=True)])
    list(
        Answering([one]).stream(
            conversation.ask("Third?", []), DEFAULT_GENERATION, never, drawings=tmp_path
        )
    )
    assert one.asked[0][0] == []


def test_boxes_are_drawn_with_each_checkpoints_padding(tmp_path: Path) -> None:
    Image.new("RGB", (900, 300), (99, 99, 99)).save(tmp_path / "wide.png")
    words = "<box>[[0, 334, 1000, 666]]</box>"
    plain, padded = scripted("plain", words), scripted("padded", words, pad2square=True)
    conversation = Conversation().ask("Where?", [MediaItem(path=str(tmp_path / "wide.png"))])
    drawings = tmp_path / "drawings"
    *_, end = Answering([plain, padded]).stream(
        conversation, DEFAULT_GENERATION, never, drawings=drawings
    )
    top_line = []
    for answer in end.turns[0].answers:
        assert answer.drawing is not None
        assert answer.caption == ""
        with Image.open(answer.drawing) as drawn:
            top_line.append(next(y for y in range(300) if drawn.getpixel((450, y)) == COLOURS[0]))
    assert top_line == [100, 1]


@pytest.mark.parametrize(
    ("number", "caption", "colour"),
    [
        (0, "Boxes on image 2 of 2", (0, 0, 200)),
        (1, "Boxes on image 1 of 2", (0, 200, 0)),
        (9, "Boxes on image 2 of 2", (0, 0, 200)),
    ],
)
def test_the_image_with_the_boxes_can_be_chosen(
    tmp_path: Path, number: int, caption: str, colour: tuple[int, int, int]
) -> None:
    media = []
    for name, fill in (("green", (0, 200, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (600, 600), fill).save(tmp_path / f"{name}.png")
        media.append(MediaItem(path=str(tmp_path / f"{name}.png")))
    conversation = Conversation().ask("Where?", media)
    answering = Answering([scripted("one", "<box>[[100, 100, 300, 300]]</box>")])
    *_, end = answering.stream(
        conversation, DEFAULT_GENERATION, never, drawings=tmp_path, box_image=number
    )
    (answer,) = end.turns[0].answers
    assert answer.caption == caption
    assert answer.drawing is not None
    with Image.open(answer.drawing) as drawn:
        assert drawn.getpixel((500, 500)) == colour


def test_boxes_are_drawn_on_the_image_as_the_model_saw_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "white").save(tmp_path / "a.jpg", exif=exif)
    one, two = (scripted(name, "<box>[[0, 0, 500, 500]]</box>") for name in ("one", "two"))
    one.model.config.apply_exif_orientation = True
    conversation = Conversation().ask("?", [MediaItem(path=str(tmp_path / "a.jpg"))])
    *_, conversation = Answering([one, two]).stream(
        conversation, DEFAULT_GENERATION, never, drawings=tmp_path
    )
    drawings = [answer.drawing for answer in conversation.turns[0].answers]
    assert [Image.open(str(path)).size for path in drawings] == [(256, 512), (512, 256)]


def test_no_image_no_drawing(tmp_path: Path) -> None:
    answering = Answering([scripted("one", "<box>[[100, 100, 300, 300]]</box>")])
    film = MediaItem(path="film.mp4", num_frames=2)
    for media in ([], [film]):
        *_, end = answering.stream(
            Conversation().ask("Where?", media), DEFAULT_GENERATION, never, drawings=tmp_path
        )
        assert end.turns[0].answers[0].drawing is None


def test_a_closed_stream_ends_the_generation(babbler: Checkpoint, tmp_path: Path) -> None:
    answering = Answering([babbler])
    asked: list[int] = []
    closing = threading.Event()

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 100 and not closing.wait(60)  # not before it is about to be closed

    steps = answering.stream(
        Conversation().ask("Hello", []),
        replace(DEFAULT_GENERATION, max_new_tokens=2000),
        should_stop,
        drawings=tmp_path,
    )
    first = next(steps)
    closing.set()
    steps.close()  # returns when the thread has ended
    assert first.turns[0].answers[0].text
    assert len(asked) < 1000, "of some 1,860 that there would be"
    *_, end = answering.stream(
        Conversation().ask("Hello", []),
        replace(DEFAULT_GENERATION, max_new_tokens=3),
        never,
        drawings=tmp_path,
    )
    assert end.turns[0].answers[0].text, "the model is free again"


def test_stop_keeps_what_was_said(babbler: Checkpoint, tmp_path: Path) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 20

    answering = Answering([babbler])
    *_, end = answering.stream(
        Conversation().ask("Hello", []),
        replace(DEFAULT_GENERATION, max_new_tokens=2000),
        should_stop,
        drawings=tmp_path,
    )
    (answer,) = end.turns[0].answers
    assert answer.stopped
    assert answer.text
    assert len(asked) < 30
    *_, end = answering.stream(
        end.ask("And?", []), DEFAULT_GENERATION, lambda: True, drawings=tmp_path
    )
    assert end.turns[1].answers == (Answer(stopped=True),), "stopped while it waited"


def test_a_conversation_longer_than_the_model_reads_is_told(
    babbler: Checkpoint, tmp_path: Path
) -> None:
    most = babbler.model.config.llm_config.max_position_embeddings
    conversation = Conversation().ask("x" * most, [])
    *_, end = Answering([babbler]).stream(
        conversation, DEFAULT_GENERATION, never, drawings=tmp_path
    )
    (answer,) = end.turns[0].answers
    length = ChatSession(babbler.model, babbler.tokenizer, {}).count_prompt_tokens("x" * most)
    assert answer.problem == (
        f"The prompt has {length} tokens, and the model's maximum context length is {most} tokens, "
        "answer included. Press Clear, or take fewer frames."
    )
    nearly = Conversation().ask("x" * (most - 300), [])
    told = babbler.answer(
        [],
        nearly.pending or Turn(typed="", question="", media=()),
        replace(DEFAULT_GENERATION, max_new_tokens=2000),
        lambda _: None,
        never,
    )
    assert told.text
    assert told.problem.startswith("The answer ends where the context of the model does")
    assert not babbler.answer([], *_asked("Hi?"), lambda _: None, never).problem


def _asked(typed: str) -> tuple[Turn, GenerationSettings]:
    turn = Turn(typed=typed, question=typed, media=())
    return turn, replace(DEFAULT_GENERATION, max_new_tokens=3)


@pytest.mark.parametrize(
    ("raised", "problem"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "The model's memory is full: ask about"),
        (MemoryError(), "The model's memory is full: ask about"),
        (RuntimeError("/srv/secret: a kernel"), "The model failed at this question; the log"),
        (ValueError("/srv/secret"), "The model failed at this question; the log"),
    ],
)
def test_a_model_that_fails_leaves_the_other_its_answer(
    babbler: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    problem: str,
) -> None:
    def failing(*args: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(babbler.model, "chat", failing)
    conversation = Conversation().ask("What?", [])
    *_, end = Answering([babbler, scripted("other", "yes")]).stream(
        conversation, DEFAULT_GENERATION, never, drawings=tmp_path
    )
    one, other = end.turns[0].answers
    assert one.problem.startswith(problem)
    assert "secret" not in one.problem
    assert other.text == "yes"


def test_an_image_that_has_gone_is_told(babbler: Checkpoint, tmp_path: Path) -> None:
    gone = MediaItem(path=str(tmp_path / "gone.png"))
    conversation = Conversation().ask("What?", [gone])
    *_, end = Answering([babbler]).stream(
        conversation, DEFAULT_GENERATION, never, drawings=tmp_path
    )
    (answer,) = end.turns[0].answers
    assert (
        answer.problem == "A file of this conversation is no longer on the server. Upload it again."
    )


def test_full_memory_is_told(
    babbler: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(babbler.model, "generate", full)
    conversation = Conversation().ask("What?", [])
    *_, end = Answering([babbler]).stream(
        conversation, DEFAULT_GENERATION, never, drawings=tmp_path
    )
    assert "memory is full" in end.turns[0].answers[0].problem


def test_an_answer_that_spells_tags_does_no_harm(babbler: Checkpoint, tmp_path: Path) -> None:
    odd = Answer(text="An <image> and <IMG_CONTEXT>")
    conversation = Conversation().ask("What?", []).answered([odd]).ask("And?", [])
    *_, end = Answering([babbler]).stream(
        conversation, replace(DEFAULT_GENERATION, max_new_tokens=3), never, drawings=tmp_path
    )
    assert not end.turns[1].answers[0].problem


def test_sampling_is_followed(babbler: Checkpoint) -> None:
    turn = Turn(typed="Hello", question="Hello", media=())

    def say(generation: GenerationSettings, seed: int) -> str:
        torch.manual_seed(seed)
        return babbler.answer([], turn, generation, lambda _: None, never).text

    greedy = replace(DEFAULT_GENERATION, max_new_tokens=20)
    assert say(greedy, 0) == say(greedy, 1)
    warm = replace(greedy, temperature=1.5)
    assert say(warm, 0) != say(warm, 1)
    assert say(warm, 0) == say(warm, 0)
    assert say(replace(warm, top_p=0.01), 0) == say(greedy, 0)


def test_keywords_of_generate() -> None:
    greedy = replace(DEFAULT_GENERATION, max_new_tokens=9)
    assert greedy.keywords() == {"max_new_tokens": 9, "do_sample": False}
    warm = replace(DEFAULT_GENERATION, temperature=0.5, top_p=0.9, max_new_tokens=9)
    wanted = {"max_new_tokens": 9, "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    assert warm.keywords() == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0),
        ("top_p", "high"),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**9),
        ("max_new_tokens", None),
    ],
)
def test_numbers_out_of_bounds_are_told(name: str, value: Any) -> None:
    with pytest.raises(QuestionError, match=f"{name} is {value}, want"):
        replace(DEFAULT_GENERATION, **{name: value})
