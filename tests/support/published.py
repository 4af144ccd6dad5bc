"""A chat checkpoint as it is published: code beside it, a slow tokenizer, 4.37's spelling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

from internvl_chat.checkpoint.skeleton import skeleton_of
from internvl_chat.model import InternVLChatConfig
from internvl_chat.model.constants import SPECIAL_TOKENS
from tests.support.tokenizers import MARKS, sentencepiece_file

CODE = Path(__file__).parents[1] / "fixtures/published_code"
VISION: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "hidden_act": "gelu",
    "hidden_size": 32,
    "image_size": 28,
    "initializer_factor": 0.1,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-06,
    "model_type": "intern_vit_6b",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 7,
    "qk_normalization": True,
    "qkv_bias": False,
    "torch_dtype": "float32",
    "use_flash_attn": True,
}
LLM: dict[str, Any] = {
    "_name_or_path": "./pretrained/Nous-Hermes-2-Yi-34B",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "return_dict": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.37.2",
}


def save_published(directory: Path, **llm: Any) -> Path:
    """Write one; every weight is distinct.

    Args:
        directory: to make.
        **llm: changes of the language model's configuration.
    """
    directory.mkdir(parents=True)
    for file in CODE.glob("*.py"):
        shutil.copy(file, directory)
    rows = _write_tokenizer(directory)
    auto = "modeling_internvl_chat.InternVLChatModel"
    values = {
        "_commit_hash": None,
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": auto,
            "AutoModelForCausalLM": auto,
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": False,
        "force_image_size": 28,
        "llm_config": {**LLM, "vocab_size": rows, **llm},
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v1",
        "select_layer": -1,
        "template": "Hermes-2",
        "torch_dtype": "float32",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "vision_config": VISION,
    }
    (directory / "config.json").write_text(json.dumps(values, indent=2))
    end = {"_from_model_config": True, "eos_token_id": rows - len(SPECIAL_TOKENS) - 1}
    (directory / "generation_config.json").write_text(json.dumps(end))
    _write_weights(directory)
    return directory


def _write_tokenizer(directory: Path) -> int:
    """tokenizer.model and what lists the tokens beside it; returns the number of ids."""
    sentencepiece_file(directory).rename(directory / "tokenizer.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    first, added = model.vocab_size(), [*MARKS, *SPECIAL_TOKENS]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings = {
        "add_bos_token": False,
        "added_tokens_decoder": {
            str(first + n): {"content": token, **flags, "special": True}
            for n, token in enumerate(added)
        },
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "legacy": True,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "LlamaTokenizer",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    listed = {token: first + n for n, token in enumerate(added)}
    (directory / "added_tokens.json").write_text(json.dumps(listed))
    return first + len(added)


def _write_weights(directory: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in skeleton_of(InternVLChatConfig.from_pretrained(directory)).shapes.items():
        value = torch.randn(shape, generator=generator) * 0.3
        is_gain = "norm" in name or ".ls" in name or name == "mlp1.0.weight"
        if "embed_tokens" in name or "lm_head" in name:
            value[:3] = value[-len(MARKS) - len(SPECIAL_TOKENS) :] = 0  # no answer is one of these
        weights[name] = value * 0.3 + 1 if is_gain else value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
