"""Presets: the published shapes and their parameter counts, on the meta device."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from internvl_chat import InternVisionConfig, InternVLChatConfig, InternVLChatModel
from internvl_chat.model.presets import load_preset, preset_names


def test_v1_2_counts_40_billion_parameters() -> None:
    config = load_preset("InternVL-Chat-V1-2")
    assert isinstance(config, InternVLChatConfig)
    with torch.device("meta"):
        model = InternVLChatModel(config)
    parts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    assert parts == {
        "vision_model": 5_536_496_000,
        "language_model": 34_388_917_248,
        "mlp1": 143_170_560,
        "vocabulary_loss": 0,
    }
    assert sum(parts.values()) == 40_068_583_808
    assert model.num_image_token == 256
    assert all(parameter.is_meta for parameter in model.parameters())


def test_parts_are_presets_of_their_own() -> None:
    vision, llm = load_preset("InternViT-6B-448px-V1-2"), load_preset("Yi-34B")
    assert isinstance(vision, InternVisionConfig)
    assert (vision.num_hidden_layers, vision.image_size) == (45, 448)
    assert isinstance(llm, LlamaConfig)
    assert llm.rope_parameters["rope_theta"] == 5_000_000
    assert (llm.rms_norm_eps, llm.tie_word_embeddings, llm.vocab_size) == (1e-5, False, 64000)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert load_preset(name).model_type


def test_unknown_name_offers_close_ones() -> None:
    with pytest.raises(ValueError, match=r"no preset 'yi-34b'\. Did you mean 'Yi-34B'"):
        load_preset("yi-34b")
