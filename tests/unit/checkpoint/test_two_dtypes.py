"""Frozen weights in bf16 beside trained ones in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model import InternVLChatModel
from tests.support.checkpoints import config_for
from tests.support.lora_checkpoints import FROZEN, logits_for, save_base

LORA: dict[str, Any] = {**FROZEN, "use_llm_lora": 4}
HEAD: dict[str, Any] = {"freeze_llm": True, "freeze_backbone": True, "unfreeze_lm_head": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


def built(path: Path, frozen: torch.dtype, flags: dict[str, Any]) -> InternVLChatModel:
    build = config_for(path, frozen_dtype=frozen, **flags)
    model = build_model(build, load_tokenizer(str(path)))
    apply_freezing_and_lora(model, build.trainable)
    return model


@pytest.mark.parametrize(
    "flags",
    [
        LORA,
        {**LORA, "use_dora": True},
        {**LORA, "unfreeze_vit_layers": -1, "freeze_mlp": False},
        {**LORA, "modules_to_save": ("lm_head",)},
        HEAD,
        {},
    ],
)
def test_only_frozen_weights_are_rounded(base: Path, flags: dict[str, Any]) -> None:
    whole = dict(built(base, torch.float32, flags).named_parameters())
    model = built(base, torch.bfloat16, flags)
    norms = {f"{n}." for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    dtypes = set()
    for name, parameter in model.named_parameters():
        before = whole.pop(name)
        assert parameter.requires_grad == before.requires_grad
        is_whole = parameter.requires_grad or name.startswith(tuple(norms))
        assert parameter.dtype == (torch.float32 if is_whole else torch.bfloat16), name
        dtypes.add(parameter.dtype)
        assert torch.equal(parameter, before.to(parameter.dtype)), name
    assert not whole
    assert len(dtypes) == (2 if flags else 1)
    assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers())


def test_a_frozen_weight_takes_two_bytes(base: Path) -> None:
    model = built(base, torch.bfloat16, LORA)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    held = sum(p.nbytes for p in frozen) / sum(p.numel() for p in frozen)
    assert held < 2.1  # the projector's norm is in fp32
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.nbytes for p in trained) == 4 * sum(p.numel() for p in trained)


def test_answers_agree_within_bf16(base: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        whole = logits_for(built(base, torch.float32, LORA))
        held = logits_for(built(base, torch.bfloat16, LORA))
    # Two layers in bf16 on either side; measured 0.012 of the largest.
    assert (whole - held).abs().max() < 0.03 * whole.abs().max()


@pytest.mark.parametrize("dora", [False, True])
def test_inputs_of_adapters_are_cast_by_autocast_alone(base: Path, dora: bool) -> None:
    def casting(frozen: torch.dtype) -> set[bool]:
        model = built(base, frozen, {**LORA, "use_dora": dora})
        return {m.cast_input_dtype_enabled for m in model.modules() if isinstance(m, LoraLayer)}

    assert casting(torch.bfloat16) == {dora}
    assert casting(torch.float32) == {True}


def test_tied_embeddings_stay_one(tmp_path: Path) -> None:
    path = save_base(tmp_path / "tied", llm={"tie_word_embeddings": True})
    model = built(path, torch.bfloat16, LORA)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embeddings.weight
    assert head.weight.dtype == torch.bfloat16
