"""What trains, by the flags of the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.lora import TrainableRow, apply_freezing_and_lora, trainable_table
from internvl_chat.checkpoint.names import is_lora
from internvl_chat.errors import ConfigError
from internvl_chat.model import InternVLChatModel
from tests.support.checkpoints import config_for, save_chat, tiny_tokenizer

FROZEN = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}


def prepared(path: Path, **changes: Any) -> InternVLChatModel:
    build = config_for(path, **changes)
    model = build_model(build, tiny_tokenizer())
    apply_freezing_and_lora(model, build.trainable)
    return model


def training(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_everything_trains_unless_told(tmp_path: Path) -> None:
    save_chat(tmp_path)
    model = prepared(tmp_path)
    assert training(model) == {name for name, _ in model.named_parameters()}
    model = prepared(tmp_path, freeze_backbone=True)
    assert {name.split(".")[0] for name in training(model)} == {"language_model", "mlp1"}


def test_the_last_vision_layers_and_the_head(tmp_path: Path) -> None:
    save_chat(tmp_path)
    model = prepared(tmp_path, **FROZEN, unfreeze_vit_layers=-1, unfreeze_lm_head=True)
    assert {".".join(name.split(".")[:4]) for name in training(model)} == {
        "vision_model.encoder.layers.2",
        "language_model.lm_head.weight",
    }


def test_adapters_sit_on_all_linear_layers_of_the_blocks_and_not_on_the_head(
    tmp_path: Path,
) -> None:
    save_chat(tmp_path)
    model = prepared(tmp_path, **FROZEN, use_llm_lora=4, use_backbone_lora=2)
    names = training(model)
    assert all(is_lora(name) for name in names)
    layers = {name.split(".lora_")[0].split(".layers.")[1] for name in names}
    llm = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    llm += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    vision = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert layers == {f"{i}.{name}" for i in range(2) for name in llm} | {
        f"{i}.{name}" for i in range(3) for name in vision
    }
    config = model.language_model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.05)
    assert (model.config.use_llm_lora, model.config.use_backbone_lora) == (4, 2)


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed_only(tmp_path: Path) -> None:
    saved = save_chat(tmp_path)
    lora = {**FROZEN, "use_llm_lora": 4}
    one, two, other = (prepared(tmp_path, **lora, seed=seed) for seed in (1, 1, 2))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert one(input_ids=ids).logits.equal(saved.eval()(input_ids=ids).logits)
    name = "language_model.base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"
    first, same, different = (m.get_parameter(name) for m in (one, two, other))
    assert first.equal(same)
    assert not first.equal(different)
    assert 0.2 < first.abs().max().item() <= 0.25  # 1/sqrt(16 inputs)
    assert one.get_parameter(name.replace("lora_A", "lora_B")).eq(0).all()


def test_the_table_counts_by_part(tmp_path: Path) -> None:
    save_chat(tmp_path)
    table = trainable_table(prepared(tmp_path, **FROZEN, use_llm_lora=4))
    assert TrainableRow("language_model embeddings", 4800, 0) in table
    assert TrainableRow("language_model head", 4800, 0) in table
    # r * (inputs + outputs) of q, k, v, o, gate, up, down in two layers.
    lora = 2 * 4 * (32 + 24 + 24 + 32 + 40 + 40 + 40)
    assert TrainableRow("language_model LoRA", lora, lora) in table
    assert TrainableRow("mlp1", 1152, 0) in table
    assert table[0].group == "vision_model"


def test_a_tied_head_cannot_be_unfrozen_alone(tmp_path: Path) -> None:
    save_chat(tmp_path, llm={"tie_word_embeddings": True})
    with pytest.raises(ConfigError, match="ties its head to the token embeddings"):
        prepared(tmp_path, **FROZEN, unfreeze_lm_head=True)
