"""Configurations: files of the transformers 4.37 era, round trips, attention kernels."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from internvl_chat import InternVisionConfig, InternVLChatConfig, InternVLChatModel
from internvl_chat.model.configuration_internvl_chat import (
    image_size_unit,
    nearest_image_size,
    num_image_token,
    shuffle_factor,
)
from tests.support.models import LLM, VISION, make_config

PUBLISHED = Path(__file__).with_name("published_v1_2_config.json")
"""Laid out like a published V1-2 ``config.json``, sizes made tiny, with generation settings set to
values that would be noticed if they were obeyed."""


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    values = json.loads(PUBLISHED.read_text())
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path, values


def test_published_file_loads(published: tuple[Path, dict[str, Any]]) -> None:
    config = AutoConfig.from_pretrained(published[0])
    assert type(config) is InternVLChatConfig
    assert type(config.vision_config) is InternVisionConfig
    assert type(config.llm_config) is LlamaConfig
    assert config.dtype is torch.bfloat16
    assert config.llm_config.rope_parameters["rope_theta"] == 5_000_000
    assert config.llm_config.tie_word_embeddings is False
    assert (config.llm_config.eos_token_id, config.llm_config.pad_token_id) == (7, 0)
    assert (config.template, config.ps_version, config.select_layer) == ("Hermes-2", "v1", -1)
    assert config.num_image_token == 4


def test_published_generation_settings_are_not_obeyed(
    published: tuple[Path, dict[str, Any]],
) -> None:
    model = InternVLChatModel(AutoConfig.from_pretrained(published[0]))
    # use_cache false, a trace of training, stays; generate() of the chat model turns the cache on.
    tokens = {"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0}
    clean = make_config(llm={**tokens, "use_cache": False})
    expected = InternVLChatModel(clean).language_model.generation_config.to_diff_dict()
    assert model.language_model.generation_config.to_diff_dict() == expected
    assert expected["eos_token_id"] == 7
    assert not {"num_beams", "temperature", "top_k", "max_length", "do_sample"} & set(expected)


def test_saved_attention_kernel_is_not_obeyed(published: tuple[Path, dict[str, Any]]) -> None:
    config = AutoConfig.from_pretrained(published[0])
    assert config._attn_implementation is None
    assert config.llm_config._attn_implementation is None
    model = InternVLChatModel(config)  # flash-attn is not installed here: obeying would raise
    assert model.config.llm_config._attn_implementation == "sdpa"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_unknown_keys_survive_a_round_trip(
    published: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(published[0])
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["lora_notes"] == {"kept": [1, 2]}
    assert "image_fold" in written
    assert written["vision_config"]["use_flash_attn"] is True
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert again.lora_notes == {"kept": [1, 2]}
    assert again.to_diff_dict() == config.to_diff_dict()


def test_written_file_has_the_published_keys(tmp_path: Path) -> None:
    config = make_config(llm={"rope_theta": 5e6}, dtype="bfloat16", system_message="Be brief.")
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": False,
        "force_image_size": None,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v1",
        "select_layer": -1,
        "system_message": "Be brief.",
        "template": "Hermes-2",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": False,
    }
    assert {key: written[key] for key in expected} == expected
    assert written["auto_map"] == {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    }
    # What transformers 4 looks for.
    assert written["llm_config"]["rope_theta"] == 5e6
    assert written["llm_config"]["architectures"] == ["LlamaForCausalLM"]
    assert written["llm_config"]["model_type"] == "llama"


def test_vision_config_of_a_chat_checkpoint(published: tuple[Path, dict[str, Any]]) -> None:
    config = InternVisionConfig.from_pretrained(published[0])
    assert (config.hidden_size, config.num_hidden_layers, config.image_size) == (32, 2, 16)
    assert config._attn_implementation is None


def test_attention_kernel_by_string_and_by_part() -> None:
    config = make_config(attn_implementation="eager")
    assert config.vision_config._attn_implementation == "eager"
    assert config.llm_config._attn_implementation == "eager"
    config = make_config(attn_implementation={"vision_config": "eager", "llm_config": "sdpa"})
    model = InternVLChatModel(config)
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.language_model.config._attn_implementation == "sdpa"
    model.set_attn_implementation({"vision_config": "sdpa", "llm_config": "eager"})
    assert model.vision_model.config._attn_implementation == "sdpa"
    assert model.language_model.config._attn_implementation == "eager"


def test_callers_values_are_left_alone() -> None:
    vision, llm = copy.deepcopy(VISION), {**LLM, "rope_parameters": {"rope_type": "default"}}
    before = copy.deepcopy((vision, llm))
    InternVLChatConfig(vision_config=vision, llm_config=llm)
    assert (vision, llm) == before


def test_defaults_without_arguments() -> None:
    config = InternVLChatConfig()
    assert config.vision_config.num_hidden_layers == 48
    assert type(config.llm_config) is LlamaConfig
    assert config.image_size == 224
    assert config.num_image_token == 64


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral", "phi3"])
def test_other_language_models(model_type: str) -> None:
    llm = {"model_type": model_type, "pad_token_id": 0}
    model = InternVLChatModel(make_config(llm=llm))
    assert model.language_model.config.model_type == model_type
    assert model.mlp1[3].out_features == 24


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="ps_version is 'v3'"):
        InternVLChatConfig(ps_version="v3")
    with pytest.raises(ValueError, match=r"llm_config\.model_type is 'internlm9'"):
        InternVLChatConfig(llm_config={"model_type": "internlm9"})


@pytest.mark.parametrize(
    ("image_size", "patch_size", "ratio", "tokens"),
    [
        (448, 14, 0.5, 256),  # 32 x 32 patches, 16 x 16 tokens
        (112, 14, 0.5, 16),
        (224, 14, 1.0, 256),
        (448, 14, 0.25, 64),
        (126, 14, 0.5, 16),  # 9 x 9 patches: the shuffle leaves 4 x 4, not a quarter of 81
        (455, 14, 0.5, 256),  # the patches of 7 pixels are cut off
    ],
)
def test_tokens_of_a_tile(image_size: int, patch_size: int, ratio: float, tokens: int) -> None:
    assert num_image_token(image_size, patch_size, ratio) == tokens
    vision = {"image_size": image_size, "patch_size": patch_size}
    config = InternVLChatConfig(vision_config=vision, downsample_ratio=ratio)
    assert config.num_image_token == tokens


def test_sizes_that_divide_into_whole_tokens() -> None:
    assert [shuffle_factor(ratio) for ratio in (1.0, 0.5, 1 / 3, 0.25)] == [1, 2, 3, 4]
    assert image_size_unit(14, 0.5) == 28
    assert image_size_unit(14, 1 / 3) == 42
    assert image_size_unit(16, 1.0) == 16
    assert [nearest_image_size(size, 28) for size in (1, 41, 43, 448)] == [28, 28, 56, 448]
