"""A model built on the GPU is, bit for bit, the one that is built on the CPU."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model import InternVLChatModel
from tests.support.checkpoints import config_for
from tests.support.lora_checkpoints import FROZEN
from tests.support.training import ROOT

pytestmark = pytest.mark.gpu

TINY = ROOT / "pretrained/internvl-chat-tiny"
LORA: dict[str, Any] = {**FROZEN, "use_llm_lora": 4, "frozen_dtype": torch.bfloat16}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full in bf16": {"dtype": torch.bfloat16},
    "lora": LORA,
    "dora": {**LORA, "use_backbone_lora": 4, "use_dora": True},
}


def built(device: torch.device, **flags: Any) -> InternVLChatModel:
    build = config_for(TINY, force_image_size=112, **flags)
    model = build_model(build, load_tokenizer(str(TINY)), device=device)
    apply_freezing_and_lora(model, build.trainable)
    return model


def held(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("way", WAYS)
def test_the_same_weights_and_buffers(device: torch.device, way: str) -> None:
    wanted = held(built(torch.device("cpu"), **WAYS[way]))
    model = built(device, **WAYS[way])
    found = held(model)
    assert {value.device.type for value in found.values()} == {device.type}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].requires_grad == value.requires_grad, name
        assert torch.equal(found[name].cpu(), value), name
    places = {name: value.data_ptr() for name, value in found.items()}
    model.to(device)  # as transformers' Trainer does
    assert {name: value.data_ptr() for name, value in held(model).items()} == places


@pytest.mark.parametrize("use_dora", [False, True])
def test_what_stands_beside_4_bits_is_the_same(device: torch.device, use_dora: bool) -> None:
    pytest.importorskip("bitsandbytes")
    flags = {**FROZEN, "use_llm_lora": 4, "load_in_4bit": True, "use_dora": use_dora}
    wanted, found = (held(built(place, **flags)) for place in (torch.device("cpu"), device))
    assert {value.device.type for value in found.values()} == {device.type}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value.dtype != torch.uint8 and "lora_magnitude_vector" not in name:
            assert torch.equal(found[name].cpu(), value), name


def test_no_second_copy_on_the_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("the CPU's memory is not counted by torch")
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = built(device)
    grown = torch.cuda.memory_allocated() - before
    peak = torch.cuda.max_memory_allocated() - before
    weights = sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert weights <= grown
    assert peak <= grown + largest + 2**20  # a piece of the file on its way into a weight
