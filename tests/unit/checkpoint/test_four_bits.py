"""QLoRA on a CPU: the language model in nf4, all else as it was, and an ordinary adapter."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from torch import Tensor

from internvl_chat.chat import load_model
from internvl_chat.checkpoint.four_bits import four_bit_line, is_four_bit_layer
from internvl_chat.checkpoint.load import build_model, inspect_checkpoint
from internvl_chat.checkpoint.lora import apply_freezing_and_lora, trainable_table
from internvl_chat.checkpoint.names import is_lora
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.checkpoint.surgery.merge import merge_lora
from internvl_chat.checkpoint.tensor_files import TensorSource
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.errors import ConfigError
from internvl_chat.model import InternVLChatModel
from tests.support.checkpoints import config_for, save_parts, stitch_config, tiny_tokenizer
from tests.support.lora_checkpoints import FROZEN, load_fp32, logits_for, save_base, save_lora
from tests.support.training import ROOT

TINY = ROOT / "pretrained/internvl-chat-tiny"
UP = "language_model.base_model.model.model.layers.0.mlp.up_proj"
QLORA: dict[str, Any] = {**FROZEN, "use_llm_lora": 4, "load_in_4bit": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llm = {"hidden_size": 64, "intermediate_size": 128}
    return save_base(tmp_path_factory.mktemp("base") / "base", llm=llm)


def built(path: Path, **flags: Any) -> InternVLChatModel:
    build = config_for(path, **{**QLORA, **flags})
    model = build_model(build, load_tokenizer(str(path)))
    apply_freezing_and_lora(model, build.trainable)
    return model


def bf16_logits(model: InternVLChatModel) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return logits_for(model)


def test_only_the_language_models_linear_layers_are_quantised(base: Path) -> None:
    model = built(base, freeze_mlp=False)
    quantised = {name for name, one in model.named_modules() if is_four_bit_layer(one)}
    assert len(quantised) == 14
    assert all(name.startswith("language_model.") and "layers." in name for name in quantised)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert is_lora(name) or name.startswith("mlp1.")
            assert parameter.dtype == torch.float32, name
        elif name.rpartition(".")[0] in quantised:
            assert parameter.dtype == torch.uint8, name
        else:
            assert parameter.dtype == torch.bfloat16, name
    weight: Any = model.get_parameter(f"{UP}.base_layer.weight")
    state = weight.quant_state
    assert (state.quant_type, state.nested, state.shape) == ("nf4", True, (128, 64))
    counted = {row.group: row.total for row in trainable_table(model)}
    plain = built(base, load_in_4bit=False, freeze_mlp=False)
    whole = {row.group: row.total for row in trainable_table(plain)}
    assert counted == whole  # weights, not bytes
    assert ModelFlops.of_model(model) == ModelFlops.of_model(plain)
    line = four_bit_line(model)
    assert line is not None
    assert "14 linear layers in 0.1 MiB, 0.1 MiB in bf16" in line


def test_answers_are_near_those_in_bf16() -> None:
    ids = load_tokenizer(str(TINY))("The red star is left of the blue circle.", return_tensors="pt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        small, whole = (
            model(input_ids=ids["input_ids"]).logits.float()
            for model in (built(TINY, force_image_size=112), load_fp32(TINY))
        )
    error = (small - whole).norm() / whole.norm()
    assert 0 < error < 0.2  # of nf4 on a model of 5 million weights; measured 0.09


class Watched:
    """A source whose readings are counted while they live."""

    alive: ClassVar[list[weakref.ref[Tensor]]] = []
    most = 0

    def __init__(self, source: TensorSource) -> None:
        self.source, self.shape, self.where = source, source.shape, source.where
        self.dtype = source.dtype

    def read(self, start: int, stop: int) -> Tensor:
        values = self.source.read(start, stop)
        Watched.alive.append(weakref.ref(values))
        Watched.most = max(Watched.most, sum(ref() is not None for ref in Watched.alive))
        return values


def test_one_weight_at_a_time(base: Path) -> None:
    build, tokenizer = config_for(base, **QLORA), load_tokenizer(str(base))
    plan = inspect_checkpoint(build, tokenizer)
    plan.tensors = {name: Watched(source) for name, source in plan.tensors.items()}
    build_model(build, tokenizer, plan=plan)
    assert plan.tensors == {}
    assert Watched.most == 1


@pytest.mark.parametrize("use_dora", [False, True])
def test_it_learns_and_leaves_an_ordinary_adapter(
    base: Path, tmp_path: Path, use_dora: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = built(base, use_dora=use_dora, lora_dropout=0.0)
    before = bf16_logits(model)
    ids = torch.arange(30, 46).unsqueeze(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for step in range(8):
        if step == 4:
            bf16_logits(model)  # evaluates in between, where a CPU may pack weights anew
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    (tmp_path / "a").mkdir()
    save_checkpoint_files(model, load_tokenizer(str(base)), tmp_path / "a")
    assert not list((tmp_path / "a").glob("model*.safetensors"))
    found = bf16_logits(model)
    effect = (found - before).norm()
    same, _ = load_model(str(tmp_path / "a"), device="cpu", load_in_4bit=True)
    assert (logits_for(same) - found).norm() < 0.1 * effect
    whole = logits_for(load_model(str(tmp_path / "a"), device="cpu")[0])
    assert (whole - found).norm() < 0.5 * effect
    peft = PeftModel.from_pretrained(load_fp32(base), str(tmp_path / "a"))
    assert logits_for(peft.base_model.model).equal(whole)
    with caplog.at_level(logging.WARNING):
        merge_lora(str(tmp_path / "a"), str(tmp_path / "merged"), dtype=torch.float32)
    assert "was trained on its base in 4 bits" in caplog.text
    assert (logits_for(load_fp32(tmp_path / "merged")) - whole).abs().max() < 1e-4
    again = built(tmp_path / "a")
    assert (bf16_logits(again) - found).norm() < 1e-2 * found.norm()


def test_dora_starts_as_the_identity_of_what_it_sits_on(base: Path) -> None:
    flags: dict[str, Any] = {"use_dora": True, "lora_target_modules": ["up_proj"]}
    layer: Any = built(base, **flags).get_submodule("language_model.model.layers.0.mlp.up_proj")
    weight = layer.base_layer.weight
    whole = dequantize_4bit(weight.data, weight.quant_state).float()
    assert layer.lora_magnitude_vector["default"].weight.allclose(whole.norm(dim=1))


def test_modules_that_train_whole_are_not_quantised(base: Path) -> None:
    flags: dict[str, Any] = {
        "lora_target_modules": [r".*layers\.0.*"],
        "modules_to_save": ["layers.1.mlp.up_proj"],
    }
    model = built(base, **flags)
    assert model.get_parameter("language_model.model.layers.1.mlp.up_proj.weight").requires_grad
    assert is_four_bit_layer(model.get_submodule("language_model.model.layers.1.mlp.down_proj"))


def test_what_no_adapter_could_hold_is_refused(base: Path, tmp_path: Path) -> None:
    save_parts(tmp_path)
    with pytest.raises(ConfigError, match=r"saves an adapter, .*the model was stitched"):
        inspect_checkpoint(stitch_config(tmp_path, **QLORA), tiny_tokenizer())
    save_lora(base, tmp_path / "inside", adapter_only=False, vision=0)
    with pytest.raises(ConfigError, match="its checkpoint carries the adapter itself"):
        built(tmp_path / "inside")
    with pytest.raises(ConfigError, match="position embeddings were resized"):
        built(base, force_image_size=56)
