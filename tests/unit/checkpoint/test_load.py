"""Building chat models from files on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl_chat.checkpoint.load import build_model, inspect_checkpoint
from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.errors import CheckpointError, ConfigError
from tests.support.checkpoints import (
    config_for,
    save_chat,
    save_parts,
    stitch_config,
    tiny_tokenizer,
)


def equal_states(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    one, two = model.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_a_whole_checkpoint_loads_bit_for_bit(tmp_path: Path) -> None:
    saved = save_chat(tmp_path)
    model = build_model(config_for(tmp_path), tiny_tokenizer())
    assert equal_states(model, saved)
    buffers = dict(saved.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffer.equal(buffers[name]), name
        assert buffer.dtype == buffers[name].dtype, name
    assert not model.training


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    saved = save_chat(tmp_path, llm={"tie_word_embeddings": True})
    model = build_model(config_for(tmp_path), tiny_tokenizer())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert equal_states(model, saved)


def test_bf16_rounds_weights_and_keeps_rotary_frequencies_in_fp32(tmp_path: Path) -> None:
    saved = save_chat(tmp_path)
    model = build_model(config_for(tmp_path, dtype=torch.bfloat16), tiny_tokenizer())
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert value.equal(saved.state_dict()[name].bfloat16()), name
    frequencies = dict(model.named_buffers())["language_model.model.rotary_emb.inv_freq"]
    assert frequencies.dtype == torch.float32
    assert model.config.dtype == torch.bfloat16


def test_stitching_takes_each_part_and_grows_the_vocabulary(tmp_path: Path) -> None:
    parts = save_parts(tmp_path, vocab_size=259)  # no padding: exactly the tokenizer's
    tokenizer = tiny_tokenizer()
    added = add_special_tokens(tokenizer)
    assert (added, len(tokenizer)) == (9, 268)
    model = build_model(stitch_config(tmp_path), tokenizer, num_new_tokens=added)
    assert equal_states(model.vision_model, parts["vision_model"])
    assert equal_states(model.mlp1, parts["mlp1"])
    assert model.config.llm_config.vocab_size == 268
    assert model.img_context_token_id == 261
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old = parts["language_model"].state_dict()[name]
        new = model.language_model.state_dict()[name]
        assert new.shape == (268, 16)
        assert new[:259].equal(old)
        mean = old.double().mean(0).float()
        assert all(row.equal(mean) for row in new[259:])


def test_a_padded_vocabulary_is_never_shrunk(tmp_path: Path) -> None:
    parts = save_parts(tmp_path)  # 300 rows, 259 tokens
    tokenizer = tiny_tokenizer()
    added = add_special_tokens(tokenizer)
    model = build_model(stitch_config(tmp_path), tokenizer, num_new_tokens=added)
    assert model.config.llm_config.vocab_size == 300
    old = parts["language_model"].state_dict()["lm_head.weight"]
    new = model.language_model.state_dict()["lm_head.weight"]
    mean = old[:259].double().mean(0).float()
    assert new[:259].equal(old[:259])
    assert all(row.equal(mean) for row in new[259:268])
    assert new[268:].equal(old[268:])


def test_vision_and_llm_can_come_out_of_chat_checkpoints(tmp_path: Path) -> None:
    saved = save_chat(tmp_path)
    build = config_for(vision_path=str(tmp_path), llm_path=str(tmp_path), seed=3)
    model = build_model(build, tiny_tokenizer())
    assert equal_states(model.vision_model, saved.vision_model)
    assert equal_states(model.language_model, saved.language_model)
    again = build_model(build, tiny_tokenizer())
    assert equal_states(model.mlp1, again.mlp1)
    weight, bias, norm = model.mlp1[1].weight, model.mlp1[1].bias, model.mlp1[0]
    assert 0.9 / 48**0.5 < weight.abs().max().item() <= 1 / 48**0.5
    assert 0 < bias.abs().max().item() <= 1 / 48**0.5
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()


def test_another_image_size_resizes_position_embeddings(tmp_path: Path) -> None:
    saved = save_chat(tmp_path)
    model = build_model(config_for(tmp_path, force_image_size=42), tiny_tokenizer())
    saved.vision_model.resize_pos_embeddings(28, 42, 7)
    assert model.vision_model.embeddings.position_embedding.equal(
        saved.vision_model.embeddings.position_embedding
    )
    assert model.config.vision_config.image_size == 42
    assert model.num_image_token == 9


def test_the_run_decides_these_settings(tmp_path: Path) -> None:
    save_chat(tmp_path)
    wanted: dict[str, Any] = {
        "vision_select_layer": -2,
        "drop_path_rate": 0.1,
        "ps_version": "v2",
        "conv_style": "internvl2_5",
        "pad2square": True,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 2,
        "max_dynamic_patch": 5,
        "kernel": "eager",
    }
    config = build_model(config_for(tmp_path, **wanted), tiny_tokenizer()).config
    assert config.select_layer == -2
    assert config.vision_config.drop_path_rate == 0.1
    assert config.vision_config._attn_implementation == "eager"
    assert config.llm_config._attn_implementation == "eager"
    assert config.template == "internvl2_5"
    elsewhere = {"vision_select_layer", "drop_path_rate", "conv_style", "kernel"}
    for name in set(wanted) - elsewhere:
        assert getattr(config, name) == wanted[name], name


def _edit(path: Path, change: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_everything_that_does_not_fit_is_one_error(tmp_path: Path) -> None:
    save_chat(tmp_path)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["mlp1.1.bias"]
        tensors["mlp1.4.weight"] = torch.zeros(2)
        tensors["mlp1.3.weight"] = torch.zeros(16, 15)
        tensors["language_model.lm_head.weight"] = torch.zeros(0)

    _edit(tmp_path, spoil)
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(config_for(tmp_path), tiny_tokenizer())
    assert caught.value.exit_code == 2
    assert caught.value.where == str(tmp_path)
    assert caught.value.problem == (
        "tensors 1 missing: mlp1.1.bias; 1 surplus: mlp1.4.weight; "
        "1 of the wrong shape: mlp1.3.weight is 16x15, wanted 16x16; "
        "1 of zero size: language_model.lm_head.weight"
    )


def test_only_the_first_ten_names_are_listed(tmp_path: Path) -> None:
    save_chat(tmp_path)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for number in range(12):
            tensors[f"x{number:02d}"] = torch.zeros(1)

    _edit(tmp_path, spoil)
    with pytest.raises(CheckpointError, match=r"12 surplus: x00, .*x09 and 2 more"):
        inspect_checkpoint(config_for(tmp_path), tiny_tokenizer())


def test_buffers_that_old_libraries_saved_are_no_surplus(tmp_path: Path) -> None:
    save_chat(tmp_path)
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    _edit(tmp_path, lambda tensors: tensors.update({name: torch.zeros(2)}))
    plan = inspect_checkpoint(config_for(tmp_path), tiny_tokenizer())
    assert plan.config.model_type == "internvl_chat"


@pytest.mark.parametrize("old_peft", [False, True])
def test_lora_checkpoints_of_the_original_layout_continue(tmp_path: Path, old_peft: bool) -> None:
    saved = save_chat(tmp_path, use_llm_lora=4)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".base_layer." in name]:
            tensors[name.replace(".base_layer.", ".")] = tensors.pop(name)

    if old_peft:  # before 0.7
        _edit(tmp_path, rename)
    build = config_for(tmp_path, use_llm_lora=4, freeze_llm=True)
    model = build_model(build, tiny_tokenizer())
    assert equal_states(model, saved)
    # Its base is not a checkpoint of its own, so it cannot be saved as an adapter alone.
    assert model.adapter_base is None
    with pytest.raises(ConfigError, match="carries an adapter of rank 4, not 8"):
        build_model(config_for(tmp_path, use_llm_lora=8, freeze_llm=True), tiny_tokenizer())


def test_half_an_adapter_is_an_error(tmp_path: Path) -> None:
    save_chat(tmp_path, use_llm_lora=4)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".1.mlp.up_proj.lora_B" in name]:
            del tensors[name]

    _edit(tmp_path, spoil)
    build = config_for(tmp_path, use_llm_lora=4, freeze_llm=True)
    with pytest.raises(CheckpointError, match=r"1 missing: .*\.up_proj\.lora_B\.default"):
        inspect_checkpoint(build, tiny_tokenizer())


def test_a_projector_of_another_vision_tower(tmp_path: Path) -> None:
    save_parts(tmp_path)
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "mlp.pth")
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(stitch_config(tmp_path), tiny_tokenizer())
    assert "5 missing: mlp1.0.bias, mlp1.1.weight" in caught.value.problem
    assert "mlp1.0.weight is 3, wanted 48" in caught.value.problem
    assert str(tmp_path / "mlp.pth") in str(caught.value)


def test_an_llm_is_no_chat_checkpoint(tmp_path: Path) -> None:
    save_parts(tmp_path)
    with pytest.raises(CheckpointError, match="model_type is 'llama', wanted 'internvl_chat'"):
        inspect_checkpoint(config_for(tmp_path / "llm"), tiny_tokenizer())
    build = config_for(vision_path=str(tmp_path / "llm"), llm_path=str(tmp_path / "llm"))
    with pytest.raises(CheckpointError, match="model_type is 'llama', wanted 'intern_vit_6b'"):
        inspect_checkpoint(build, tiny_tokenizer())


def test_a_missing_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(No such file"):
        inspect_checkpoint(config_for(tmp_path), tiny_tokenizer())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"force_image_size": 30}, "30 is no multiple of .* = 14. Nearest that work: 28 or 42"),
        ({"vision_select_layer": 4}, "--vision_select_layer 4: the tower has 3 layers"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_chat(tmp_path)
    with pytest.raises(ConfigError, match=message):
        inspect_checkpoint(config_for(tmp_path, **changes), tiny_tokenizer())


def test_an_adapter_inside_a_checkpoint_wants_its_layers_frozen(tmp_path: Path) -> None:
    save_chat(tmp_path, use_llm_lora=4)
    with pytest.raises(ConfigError, match="--use_llm_lora: an adapter is trained on layers that"):
        inspect_checkpoint(config_for(tmp_path), tiny_tokenizer())


def test_unknown_keys_of_a_published_config_survive(tmp_path: Path) -> None:
    save_chat(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "hidden_act_note": 7}))
    plan = inspect_checkpoint(config_for(tmp_path), tiny_tokenizer())
    assert plan.config.to_dict()["hidden_act_note"] == 7
