"""Answering on the GPU: the guide's samples with their ``.cuda()``, int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.chat import load_image, load_model
from tests.guide.test_samples import place, run
from tests.support.training import ROOT

__all__ = ["place"]

pytestmark = pytest.mark.gpu

TINY = str(ROOT / "pretrained/internvl-chat-tiny")
SAMPLES = ("pure_text", "single_image_multi_round", "combined_images", "separate_images", "video")
PICTURE = str(ROOT / "examples/image2.jpg")


def on_device(names: dict[str, Any], device: torch.device) -> None:
    """The sample's own ``.cuda()`` has put the model there."""
    assert {p.device.type for p in names["model"].parameters()} == {device.type}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample(device: torch.device, place: Path, name: str) -> None:
    names = run(name)
    on_device(names, device)
    assert len(names["history"]) == 2
    assert all(isinstance(answer, str) and answer for _, answer in names["history"])


def test_single_image_and_its_streamed_answer(device: torch.device, place: Path) -> None:
    names = run("single_image")
    on_device(names, device)
    asked = names["model"].chat(
        names["tokenizer"], names["pixel_values"], "What shape is red?", {"max_new_tokens": 8}
    )
    assert asked == "star"
    run("streaming", names)
    names["thread"].join(timeout=60)
    assert names["generated_text"].replace("<|im_end|>", "").strip() == names["response"]


def test_batch(device: torch.device, place: Path) -> None:
    names = run("batch")
    on_device(names, device)
    assert len(names["responses"]) == 2
    assert all(names["responses"])


def test_int8(device: torch.device) -> None:
    model, tokenizer = load_model(TINY, device=device, load_in_8bit=True)
    assert model.language_model.model.layers[0].self_attn.q_proj.weight.dtype == torch.int8
    pixels = load_image(PICTURE, model=model).to(device, model.mlp1[1].weight.dtype)
    settings = {"max_new_tokens": 8, "do_sample": False}
    assert model.chat(tokenizer, pixels, "What shape is red?", settings) == "star"
    assert model.static_decoder is None  # its products wait for the GPU, amid a recording too
