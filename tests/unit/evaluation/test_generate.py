"""Batches of the tiny model answer as ``model.chat`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.chat import load_model
from internvl_chat.data.pixels import normalize_pixels
from internvl_chat.evaluation import generate
from internvl_chat.evaluation.generate import ModelAnswerer, Prepared
from internvl_chat.evaluation.pixels import TileRule
from internvl_chat.evaluation.task import DataRoot, Question
from internvl_chat.evaluation.tasks.pope import POPE
from tests.support.evaluation.pope import write_pope
from tests.support.training import ROOT

RULE = TileRule(side=112, max_tiles=None, has_thumbnail=False, normalize_type="imagenet")
KEYWORDS: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 1, "do_sample": False}


@pytest.fixture(scope="module")
def answerer() -> ModelAnswerer:
    model, tokenizer = load_model(str(ROOT / "pretrained/internvl-chat-tiny"))
    return ModelAnswerer(model, tokenizer, RULE, seed=0)


@pytest.fixture(scope="module")
def prepared(answerer: ModelAnswerer, tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    """Questions with one image, with none and with two."""
    root = tmp_path_factory.mktemp("pope")
    write_pope(root)
    questions = POPE.load(DataRoot(folder=root, lmu_data=root), "2024")[:3]
    images = questions[0].images + questions[2].images
    questions += [
        Question(id="text", prompt="What is two plus two?"),
        Question(id="two", prompt="<image>\n<image>\nWhich is red?", images=images),
    ]
    return [answerer.prepare(one, "each") for one in questions]


def chat(answerer: ModelAnswerer, one: Prepared) -> str:
    pixels = None if one.tiles is None else normalize_pixels(one.tiles)
    answer = answerer.model.chat(
        answerer.tokenizer, pixels, one.question.prompt, KEYWORDS, num_patches_list=one.num_patches
    )
    assert isinstance(answer, str)
    return answer


def test_a_batch_answers_as_chat_does(answerer: ModelAnswerer, prepared: list[Prepared]) -> None:
    found = answerer.answer(prepared, KEYWORDS)
    assert [one.text for one in found] == [chat(answerer, one) for one in prepared]
    alone = [answerer.answer([one], KEYWORDS)[0] for one in prepared]
    assert found == alone
    assert all(0 < one.num_tokens <= 5 for one in found)


def test_close_decisions_are_asked_again_alone(
    answerer: ModelAnswerer, prepared: list[Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    inner = ModelAnswerer._generate

    def counted(self: ModelAnswerer, batch: Any, settings: Any) -> Any:
        sizes.append(len(batch))
        return inner(self, batch, settings)

    monkeypatch.setattr(ModelAnswerer, "_generate", counted)
    monkeypatch.setattr(generate, "SAFE_MARGIN", {torch.float32: 0.0})
    answerer.answer(prepared, KEYWORDS)
    assert sizes == [5]
    monkeypatch.setattr(generate, "SAFE_MARGIN", {torch.float32: 1e9})
    answerer.answer(prepared, KEYWORDS)
    assert sizes == [5, 5, *[1] * 5]


def test_beams(answerer: ModelAnswerer, prepared: list[Prepared]) -> None:
    beams = {**KEYWORDS, "num_beams": 2, "max_new_tokens": 4}
    together = answerer.answer(prepared[2:4], beams)
    assert together == [answerer.answer([one], beams)[0] for one in prepared[2:4]]


def test_sampled_answers_depend_on_seed_and_id_alone(
    answerer: ModelAnswerer, prepared: list[Prepared]
) -> None:
    hot = {**KEYWORDS, "do_sample": True, "temperature": 3.0}
    first = answerer.answer(prepared, hot)
    assert list(reversed(answerer.answer(prepared[::-1], hot))) == first
    other = ModelAnswerer(answerer.model, answerer.tokenizer, RULE, seed=1)
    assert other.answer(prepared, hot) != first


def test_a_batch_that_does_not_fit_is_halved(
    answerer: ModelAnswerer, prepared: list[Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = ModelAnswerer._generate

    def small(self: ModelAnswerer, batch: Any, settings: Any) -> Any:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("full")
        return inner(self, batch, settings)

    wanted = answerer.answer(prepared, KEYWORDS)
    monkeypatch.setattr(ModelAnswerer, "_generate", small)
    assert answerer.answer(prepared, KEYWORDS) == wanted


def test_half_precision_goes_one_by_one_unless_told(answerer: ModelAnswerer) -> None:
    assert 1 < answerer.rows_at_once(300) <= 16
    assert answerer.rows_at_once(10**6) == 1
    model = load_model(str(ROOT / "pretrained/internvl-chat-tiny"), dtype=torch.bfloat16)[0]
    assert ModelAnswerer(model, answerer.tokenizer, RULE, seed=0).rows_at_once(300) == 1


def test_parameters_are_counted_without_weights() -> None:
    from internvl_chat.evaluation.opening import count_parameters

    path = str(ROOT / "pretrained/internvl-chat-tiny")
    model = load_model(path)[0]
    assert count_parameters(path) == sum(one.numel() for one in model.parameters())
    assert Path(path).is_dir()
