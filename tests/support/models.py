"""Tiny models and a byte-level tokenizer, built in milliseconds, for the tests of the model."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import internvl_chat.model
from internvl_chat import InternVLChatConfig, InternVLChatModel
from internvl_chat.model.constants import SPECIAL_TOKENS

CODE_FOLDER = Path(internvl_chat.model.__file__).parent
VISION = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "image_size": 16,
    "patch_size": 4,
}
LLM = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 280,
    "max_position_embeddings": 512,
}
CONTEXT_ID = 260
"""What stands for ``<IMG_CONTEXT>`` where no tokenizer is at hand."""


def code_files(*entries: str) -> set[str]:
    """Names of the files that a checkpoint needs: these and all that they import of the package.

    Found in the syntax tree, apart from the rule that the package and transformers go by.
    """
    found: set[str] = set()
    queue = list(entries or ("configuration_internvl_chat.py", "modeling_internvl_chat.py"))
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            for node in ast.walk(ast.parse((CODE_FOLDER / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level:
                    queue.append(f"{node.module}.py")
    return found


def make_config(
    vision: dict[str, Any] | None = None, llm: dict[str, Any] | None = None, **kwargs: Any
) -> InternVLChatConfig:
    return InternVLChatConfig(
        vision_config={**VISION, **(vision or {})},
        llm_config={**LLM, **(llm or {})},
        **{"template": "Hermes-2", **kwargs},
    )


def shake(model: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Move every weight away from its initial value, so that none hides at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def make_model(config: InternVLChatConfig | None = None, seed: int = 0) -> InternVLChatModel:
    torch.manual_seed(seed)
    model = InternVLChatModel(config or make_config()).eval()
    shake(model, seed)
    model.img_context_token_id = CONTEXT_ID
    return model


def make_batch(
    num_image_token: int, image_size: int = 16, rows: int = 2, length: int = 18
) -> dict[str, Tensor]:
    """One tile per row; labels on the second half."""
    generator = torch.Generator().manual_seed(7)
    input_ids = torch.randint(0, CONTEXT_ID, (rows, length), generator=generator)
    input_ids[:, 2 : 2 + num_image_token] = CONTEXT_ID
    labels = input_ids.clone()
    labels[:, : length // 2] = -100
    pixels = torch.randn(rows, 3, image_size, image_size, generator=generator)
    return {"pixel_values": pixels, "input_ids": input_ids, "labels": labels}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then ``</s>``, the ChatML marks and InternVL's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="</s>"
    )
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([*marks, *SPECIAL_TOKENS], special_tokens=True)
    return tokenizer
