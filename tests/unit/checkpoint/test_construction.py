"""A model made where it computes: every weight there, none made elsewhere, the same values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model import InternVLChatModel
from internvl_chat.train.attention import register_attention
from internvl_chat.train.finetune import build_where_it_computes
from internvl_chat.train.parsing import parse
from internvl_chat.train.preparation import prepare_run
from tests.support.checkpoints import config_for
from tests.support.evaluation.scripted import ALONE
from tests.support.lora_checkpoints import FROZEN, save_base
from tests.support.training import train_arguments, write_dataset, write_tiny_chat_model

META = torch.device("meta")
LORA: dict[str, Any] = {**FROZEN, "use_llm_lora": 4}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full in bf16": {"dtype": torch.bfloat16},
    "lora": {**LORA, "frozen_dtype": torch.bfloat16},
    "dora": {
        **LORA,
        "use_backbone_lora": 2,
        "use_dora": True,
        "frozen_dtype": torch.bfloat16,
    },
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base"
    return save_base(path, llm={"tie_word_embeddings": request.param})


def built(path: Path, way: str, device: torch.device) -> InternVLChatModel:
    return build_model(config_for(path, **WAYS[way]), load_tokenizer(str(path)), device=device)


def held(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("way", WAYS)
def test_every_weight_and_buffer_is_on_the_device(base: Path, way: str) -> None:
    made, usual = built(base, way, META), built(base, way, torch.device("cpu"))
    assert {name: value.device.type for name, value in held(usual).items()} == dict.fromkeys(
        held(made), "cpu"
    )
    assert {name for name, value in held(made).items() if not value.is_meta} == set()
    assert made.state_dict().keys() == usual.state_dict().keys()
    for name, value in held(usual).items():
        other = held(made)[name]
        assert (other.shape, other.dtype) == (value.shape, value.dtype), name
        assert other.requires_grad == value.requires_grad, name
    assert made.img_context_token_id == usual.img_context_token_id
    tied = [
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for model in (made, usual)
    ]
    assert tied == [made.config.llm_config.tie_word_embeddings] * 2


def test_buffers_do_not_depend_on_how_weights_are_held(base: Path) -> None:
    saved = dict(InternVLChatModel.from_pretrained(base).named_buffers())
    assert any(name.endswith("inv_freq") for name in saved)
    for way in ("full", "full in bf16"):
        buffers = dict(built(base, way, torch.device("cpu")).named_buffers())
        assert buffers.keys() == saved.keys()
        assert all(buffers[name].equal(value) for name, value in saved.items())
    frequencies = [value for name, value in saved.items() if name.endswith("inv_freq")]
    adapted = dict(built(base, "dora", torch.device("cpu")).named_buffers())
    found = [value for name, value in adapted.items() if name.endswith("inv_freq")]
    assert all(one.equal(other) for one, other in zip(found, frequencies, strict=True))


def test_a_run_builds_on_the_device_of_its_rank(tmp_path: Path) -> None:
    register_attention()
    meta = write_dataset(tmp_path, ("text", "image") * 2)
    path = write_tiny_chat_model(tmp_path / "model")
    args = parse(train_arguments(path, meta, tmp_path / "out"), device=torch.device("cpu"))
    prepared = prepare_run(args, ALONE)
    model = build_where_it_computes(prepared, replace(ALONE, device=META))
    assert {value.device for value in held(model).values()} == {META}
