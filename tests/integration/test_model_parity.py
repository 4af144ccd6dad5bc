"""Checkpoints laid out by the original code (transformers 4.37) give its logits and loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

import internvl_chat  # noqa: F401  (registers the model)
from tests.support.original_model import OriginalModel

CONTEXT_ID = 50
TOLERANCE = 1e-5
"""fp32 against fp64, 3 + 2 layers, logits of size 1; the largest difference measured is 4e-6."""

VISION: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "attention_dropout": 0.0,
    "drop_path_rate": 0.1,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 24,
    "image_size": 16,
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-6,
    "model_type": "intern_vit_6b",
    "norm_type": "rms_norm",
    "num_attention_heads": 3,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 4,
    "qk_normalization": True,
    "qkv_bias": False,
    "torch_dtype": "bfloat16",
    "use_bfloat16": False,
    "use_flash_attn": True,
    "top_k": 50,
    "pruned_heads": {},
}
LLM: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "add_cross_attention": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "flash_attention_2",
    "bad_words_ids": None,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_beams": 1,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 5_000_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "vocab_size": 60,
}


def make_config(vision: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": False,
        "force_image_size": 16,
        "llm_config": LLM,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v1",
        "select_layer": -1,
        "template": "Hermes-2",
        "torch_dtype": "float32",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": False,
        "vision_config": {**VISION, **vision},
        **top,
    }


def make_tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under the original names; LoRA as PEFT 0.4 wrote it."""
    vision, llm = config["vision_config"], config["llm_config"]
    width, inner, out = vision["hidden_size"], vision["intermediate_size"], llm["hidden_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (out, 4 * width),
        "mlp1.1.bias": (out,),
        "mlp1.3.weight": (out, out),
        "mlp1.3.bias": (out,),
    }
    ranks = (config["use_backbone_lora"], config["use_llm_lora"])
    vit, lm = (
        name + ("base_model.model." if rank else "")
        for name, rank in zip(("vision_model.", "language_model."), ranks, strict=True)
    )
    shapes[vit + "embeddings.class_embedding"] = (1, 1, width)
    shapes[vit + "embeddings.patch_embedding.weight"] = (width, 3, 4, 4)
    shapes[vit + "embeddings.patch_embedding.bias"] = (width,)
    shapes[vit + "embeddings.position_embedding"] = (1, 1 + patches, width)
    adapted: dict[str, int] = {}
    for index in range(vision["num_hidden_layers"]):
        layer = f"{vit}encoder.layers.{index}."
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", inner, width),
            ("mlp.fc2", width, inner),
        ):
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            if name != "attn.qkv" or vision["qkv_bias"]:
                shapes[f"{layer}{name}.bias"] = (rows,)
            adapted[layer + name] = ranks[0]
        for name in ("ls1", "ls2"):
            shapes[layer + name] = (width,)
        norms = ["norm1", "norm2"]
        if vision["qk_normalization"]:
            shapes[layer + "attn.q_norm.weight"] = shapes[layer + "attn.k_norm.weight"] = (width,)
        for name in norms:
            shapes[f"{layer}{name}.weight"] = (width,)
            if vision["norm_type"] == "layer_norm":
                shapes[f"{layer}{name}.bias"] = (width,)
    keys = out // llm["num_attention_heads"] * llm["num_key_value_heads"]
    wide = llm["intermediate_size"]
    for index in range(llm["num_hidden_layers"]):
        layer = f"{lm}model.layers.{index}."
        for name, rows, columns in (
            ("self_attn.q_proj", out, out),
            ("self_attn.k_proj", keys, out),
            ("self_attn.v_proj", keys, out),
            ("self_attn.o_proj", out, out),
            ("mlp.gate_proj", wide, out),
            ("mlp.up_proj", wide, out),
            ("mlp.down_proj", out, wide),
        ):
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            adapted[layer + name] = ranks[1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{name}.weight"] = (out,)
    shapes[lm + "model.norm.weight"] = (out,)
    shapes[lm + "model.embed_tokens.weight"] = (llm["vocab_size"], out)
    shapes[lm + "lm_head.weight"] = (llm["vocab_size"], out)
    for name, rank in adapted.items():
        if rank:
            rows, columns = shapes[f"{name}.weight"]
            shapes[f"{name}.lora_A.default.weight"] = (rank, columns)
            shapes[f"{name}.lora_B.default.weight"] = (rows, rank)
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_scale = len(shape) == 1 and not name.endswith("bias")
        tensors[name] = 1 + 0.2 * noise if is_scale else 0.2 * noise
    return tensors


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def make_rows(num_image_token: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Two images and text, text only, text then an image; a dummy tile between."""
    image = [CONTEXT_ID] * num_image_token
    rows = [
        [3, *image, 4, 5, *image, 6, 8],
        [9, 10, 11, 12, 13, 14],
        [15, 16, 17, *image, 18, 19],
    ]
    ids = [torch.tensor(row) for row in rows]
    labels = [torch.where(torch.arange(len(row)) < 3, -100, row) for row in ids]
    labels = [row.masked_fill(row == CONTEXT_ID, -100) for row in labels]
    return ids, labels, torch.tensor([1, 1, 0, 1])


def pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


CASES: dict[str, dict[str, Any]] = {
    "published shape": {},
    "v2 shuffle": {"ps_version": "v2"},
    "layer norm": {"vision": {"norm_type": "layer_norm"}},
    "qkv bias": {"vision": {"qkv_bias": True}},
    "no qk norm": {"vision": {"qk_normalization": False}},
    "select_layer -2": {"select_layer": -2},
    "non-native image size": {"force_image_size": 24},
    "smaller image": {"force_image_size": 8, "ps_version": "v2"},
    "llm lora": {"use_llm_lora": 4},
    "both loras": {"use_llm_lora": 3, "use_backbone_lora": 2, "vision": {"qkv_bias": True}},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_loss(name: str, tmp_path: Path) -> None:
    case = dict(CASES[name])
    config = make_config(case.pop("vision", {}), **case)
    tensors = make_tensors(config)
    write(tmp_path, config, tensors)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    model.img_context_token_id = CONTEXT_ID
    assert not model.training

    ids, labels, flags = make_rows(model.num_image_token)
    size = config["force_image_size"]
    tiles = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    exact = {key: tensor.double() for key, tensor in tensors.items()}
    original = OriginalModel(config, exact, CONTEXT_ID)
    expected = original.logits(ids, tiles.double(), flags)
    expected_loss = original.loss(expected, labels)

    batch = {
        "pixel_values": tiles,
        "input_ids": pad(ids, 0),
        "labels": pad(labels, -100),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
        "image_flags": flags[:, None],
    }
    outputs = model(**batch)
    for found, wanted in zip(outputs.logits, expected, strict=True):
        assert (found[: len(wanted)] - wanted).abs().max() < TOLERANCE
    assert abs(outputs.loss - expected_loss) < TOLERANCE
    assert abs(model(**batch, return_logits=False).loss - expected_loss) < TOLERANCE
    spread = torch.cat(expected).std()
    assert spread > 0.3  # the comparison is of numbers that mean something


def test_pixel_shuffle_versions_differ(tmp_path: Path) -> None:
    """The reference tells v1 from v2: otherwise the cases above would prove nothing."""
    tiles = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ids, labels, flags = make_rows(4)
    losses = []
    for version in ("v1", "v2"):
        config = make_config({}, ps_version=version)
        original = OriginalModel(config, make_tensors(config), CONTEXT_ID)
        losses.append(original.loss(original.logits(ids, tiles, flags), labels))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("wrapped", [False, True])
def test_saved_again_under_the_same_names(wrapped: bool, tmp_path: Path) -> None:
    config = make_config({}, use_llm_lora=4 if wrapped else 0)
    tensors = make_tensors(config)
    write(tmp_path, config, tensors)
    model = AutoModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "again")
    from safetensors.torch import load_file

    again = load_file(tmp_path / "again" / "model.safetensors")
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["llm_config"]["rope_theta"] == 5_000_000.0
