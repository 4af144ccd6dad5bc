"""int8 on a CPU: the shipped model's answers to held-out questions hardly change."""

from __future__ import annotations

import pytest
import torch

from examples.tiny_model.records import FAMILIES, Sample, make_sample
from internvl_chat.chat import load_image, load_model
from tests.support.training import ROOT

TINY = str(ROOT / "pretrained/internvl-chat-tiny")
SEED = 99
NUM_QUESTIONS = 200
SETTINGS = {"max_new_tokens": 48, "do_sample": False}


def held_out(family: str) -> list[Sample]:
    share = -(-NUM_QUESTIONS // len(FAMILIES))
    return [make_sample(SEED, family, "heldout", index) for index in range(share)]


def answers(model: torch.nn.Module, tokenizer: object, family: str) -> list[str]:
    """First questions of a family's samples, in one batch."""
    samples = held_out(family)
    tiles = [load_image(image, image_size=112) for s in samples for image in s.images]
    return model.batch_chat(
        tokenizer,
        torch.cat(tiles) if tiles else None,
        ["<image>\n" * len(s.images) + s.questions[0].text for s in samples],
        SETTINGS,
        num_patches_list=[[1] * len(s.images) for s in samples],
    )


def test_answers_in_int8_are_those_in_fp32() -> None:
    whole, tokenizer = load_model(TINY, device="cpu")
    small, _ = load_model(TINY, device="cpu", load_in_8bit=True)
    linear = small.language_model.model.layers[0].mlp.up_proj
    assert linear.weight.dtype == torch.int8
    for kept in (small.language_model.lm_head, small.mlp1[1], small.mlp1[3]):
        assert kept.weight.dtype == torch.float32
    same = right = asked = 0
    for family in FAMILIES:
        ours, theirs = (answers(model, tokenizer, family) for model in (small, whole))
        truth = [sample.questions[0].answer for sample in held_out(family)]
        asked += len(truth)
        same += sum(a == b for a, b in zip(ours, theirs, strict=True))
        right += sum(a == b for a, b in zip(theirs, truth, strict=True))
    assert asked >= NUM_QUESTIONS
    assert right / asked > 0.7  # the model answers: equal nonsense would prove nothing
    assert same / asked == pytest.approx(1.0, abs=0.05), f"{same} of {asked}"
