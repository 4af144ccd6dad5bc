"""Tiny checkpoints of the real classes, written to a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from internvl_chat.config import BuildConfig
from internvl_chat.model import (
    InternVisionConfig,
    InternVisionModel,
    InternVLChatConfig,
    InternVLChatModel,
)
from tests.support.configs import build_config

VISION: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 7,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
}
LLM: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


def tiny_tokenizer(*, end_of_turn: bool = True) -> PreTrainedTokenizerFast:
    """Bytes (ids 0-255) and, as special tokens, ``</s>`` and the marks of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.pad_token = "</s>"
    if end_of_turn:
        extra = ["<|im_start|>", "<|im_end|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": extra})
    return tokenizer


def tiny_config(**changes: Any) -> InternVLChatConfig:
    llm = {**LLM, **changes.pop("llm", {})}
    vision = {**VISION, **changes.pop("vision", {})}
    values = {"force_image_size": vision["image_size"], "template": "Hermes-2", **changes}
    return InternVLChatConfig(vision_config=vision, llm_config=llm, **values)


def randomised(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every parameter distinct and non-zero, norms and class tokens included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def save_chat(directory: Path, *, seed: int = 1, **changes: Any) -> InternVLChatModel:
    """A whole chat checkpoint with its tokenizer; returns the model that was saved."""
    model = randomised(InternVLChatModel(tiny_config(**changes)), seed)
    assert isinstance(model, InternVLChatModel)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model


def save_parts(directory: Path, **llm_changes: Any) -> dict[str, torch.nn.Module]:
    """Separate checkpoints ``vit``, ``llm`` and ``mlp.pth``; returns what was saved."""
    vision = randomised(InternVisionModel(InternVisionConfig(**VISION)), 1)
    vision.save_pretrained(directory / "vit")
    values = {key: value for key, value in LLM.items() if key != "model_type"}
    llm = randomised(LlamaForCausalLM(LlamaConfig(**{**values, **llm_changes})), 2)
    llm.save_pretrained(directory / "llm")
    tiny_tokenizer().save_pretrained(directory / "llm")
    mlp = randomised(InternVLChatModel(tiny_config()), 3).mlp1
    torch.save(mlp.state_dict(), directory / "mlp.pth")
    return {"vision_model": vision, "language_model": llm, "mlp1": mlp}


def config_for(path: Path | None = None, **flags: Any) -> BuildConfig:
    """What to build, with the tiny model's image size, in fp32."""
    values: dict[str, Any] = {
        "model_name_or_path": None if path is None else str(path),
        "force_image_size": VISION["image_size"],
        **flags,
    }
    return build_config(**values)


def stitch_config(directory: Path, **flags: Any) -> BuildConfig:
    """A model stitched from what :func:`save_parts` wrote."""
    parts = {"mlp_path": str(directory / "mlp.pth"), **flags}
    return config_for(vision_path=str(directory / "vit"), llm_path=str(directory / "llm"), **parts)
