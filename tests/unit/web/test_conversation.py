"""Tags of a question, and the steps of a conversation."""

from __future__ import annotations

import copy

import pytest

from internvl_chat.web.conversation import (
    Answer,
    Conversation,
    MediaItem,
    QuestionError,
    Turn,
    write_tags,
)

ONE, TWO = MediaItem(path="/up/one.png"), MediaItem(path="/up/two.png")
FILM = MediaItem(path="/up/film.mp4", num_frames=2)
FRAMES = "Frame1: <image>\nFrame2: <image>\n"


@pytest.mark.parametrize(
    ("typed", "media", "question", "ordered"),
    [
        ("Why?", [], "Why?", ()),
        ("Why?", [ONE], "<image>\nWhy?", (ONE,)),
        ("Why?", [ONE, FILM, TWO], f"<image>\n{FRAMES}<image>\nWhy?", (ONE, FILM, TWO)),
        ("This <image>, then <image>?", [ONE, TWO], "This <image>, then <image>?", (ONE, TWO)),
        ("<video>\n<image> Same?", [ONE, FILM], f"{FRAMES}<image> Same?", (FILM, ONE)),
        ("See <video> now", [FILM], f"See {FRAMES} now", (FILM,)),
    ],
)
def test_every_image_and_frame_gets_its_tag(
    typed: str, media: list[MediaItem], question: str, ordered: tuple[MediaItem, ...]
) -> None:
    assert write_tags(typed, media) == (question, ordered)


@pytest.mark.parametrize(
    ("typed", "media", "problem"),
    [
        (" \n", [], "The question is empty"),
        ("<image>", [ONE], "The question is empty"),
        ("<image> <image>?", [ONE], "tags for 2 images and 0 videos, but 1 image and 0 videos"),
        ("<image>?", [], "tags for 1 image and 0 videos, but 0 images"),
        ("<image>?", [ONE, TWO], "for 1 image and 0 videos, but 2 images"),
        ("<image>?", [FILM], "for 1 image and 0 videos, but 0 images and 1 video"),
        ("<IMG_CONTEXT>?", [], "reserved"),
    ],
)
def test_what_does_not_fit_is_told(typed: str, media: list[MediaItem], problem: str) -> None:
    with pytest.raises(QuestionError, match=problem):
        write_tags(typed, media)


def test_ask_answer_and_once_more() -> None:
    conversation = Conversation().ask("Why?", [ONE]).answered([Answer(text="So.")])
    assert conversation.pending is None
    assert conversation.turns == (
        Turn(
            typed="Why?",
            question="<image>\nWhy?",
            media=(ONE,),
            answers=(Answer(text="So."),),
        ),
    )
    more = conversation.ask("And?", [FILM, TWO])
    assert more.images == (ONE, TWO)
    assert more.turns == conversation.turns
    again = more.answered([Answer(text="Yes.")]).again()
    assert again == more
    with pytest.raises(QuestionError, match="no answer to regenerate"):
        Conversation().again()


def test_gradio_can_copy_it() -> None:
    conversation = Conversation().ask("Why?", [ONE]).answered([Answer(text="So.")])
    assert copy.deepcopy(conversation) == conversation
