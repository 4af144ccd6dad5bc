"""Questions with rounds before them are asked as ``chat`` asks them with a history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internvl_chat.data.pixels import normalize_pixels
from internvl_chat.data.schema import BadRecordError
from internvl_chat.evaluation.fingerprints import questions_fingerprint
from internvl_chat.evaluation.generate import ModelAnswerer
from internvl_chat.evaluation.pixels import TileRule
from internvl_chat.evaluation.runner import estimated_length
from internvl_chat.evaluation.sources import ImageFile
from internvl_chat.evaluation.task import Question, VideoClip
from internvl_chat.evaluation.videos import with_segments
from tests.support.evaluation.own import write_own
from tests.support.training import ROOT

TINY = ROOT / "pretrained/internvl-chat-tiny"
EARLIER = (("<image>\nWhich color is this?", "red"),)
needs_tiny = pytest.mark.skipif(not TINY.is_dir(), reason="the tiny model is not in this checkout")


def question(root: Path) -> Question:
    images = tuple(ImageFile(str(root / f"images/{name}.png")) for name in ("red", "blue"))
    return Question(id="q", prompt="And <image> here?", images=images, earlier=EARLIER)


@pytest.fixture(scope="module")
def answerer() -> ModelAnswerer:
    from internvl_chat.chat import load_model

    model, tokenizer = load_model(str(TINY), device="cpu")
    rule = TileRule(side=112, max_tiles=None, has_thumbnail=False, normalize_type="imagenet")
    return ModelAnswerer(model, tokenizer, rule, 0)


@needs_tiny
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_answer_is_that_of_chat(
    tmp_path: Path, answerer: ModelAnswerer, system: str | None
) -> None:
    write_own(tmp_path)
    prepared = answerer.prepare(replace(question(tmp_path), system_message=system), "each")
    assert prepared.num_patches == [1, 1]
    settings = {"max_new_tokens": 8, "do_sample": False}
    (answer,) = answerer.answer([prepared], settings)
    assert prepared.tiles is not None
    pixels = normalize_pixels(prepared.tiles, normalize_type="imagenet", dtype=torch.float32)
    model, own = answerer.model, answerer.model.system_message
    model.system_message = own if system is None else system
    try:
        expected = model.chat(
            answerer.tokenizer,
            pixels,
            "And <image> here?",
            settings,
            history=list(EARLIER),
            num_patches_list=[1, 1],
        )
    finally:
        model.system_message = own
    assert answer.text == expected


@needs_tiny
def test_tags_of_all_rounds_are_counted(tmp_path: Path, answerer: ModelAnswerer) -> None:
    write_own(tmp_path)
    asked = question(tmp_path)
    assert asked.num_image_tags == 2
    with pytest.raises(BadRecordError, match="2 <image> tags for 1 images"):
        answerer.prepare(replace(asked, images=asked.images[:1]), "each")


def test_another_history_is_another_question(tmp_path: Path) -> None:
    asked = question(tmp_path)
    others = [
        replace(asked, earlier=((EARLIER[0][0], "green"),)),
        replace(asked, system_message="Be brief."),
        replace(asked, earlier=()),
    ]
    prints = {questions_fingerprint([one], tmp_path) for one in (asked, *others)}
    assert len(prints) == 4
    assert estimated_length(asked) > estimated_length(others[2])


def test_frames_are_counted_anew_in_earlier_rounds() -> None:
    tags = "Frame1: <image>\nFrame2: <image>\n"
    asked = Question(
        id="v",
        prompt="And then?",
        video=VideoClip(path="v.mp4", num_segments=2),
        earlier=((f"{tags}What happens?", "rain"),),
    )
    assert with_segments(asked, 1).earlier == (("Frame1: <image>\nWhat happens?", "rain"),)
