"""Chat checkpoints with adapters, as training leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.checkpoint.names import is_lora
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer
from internvl_chat.model import InternVLChatModel
from tests.support.checkpoints import LLM, config_for, randomised, tiny_config, tiny_tokenizer

FROZEN = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}


def save_base(
    directory: Path, *, dtype: torch.dtype = torch.float32, seed: int = 1, **changes: Any
) -> Path:
    """A whole chat checkpoint, every weight distinct."""
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    llm = {**LLM, "vocab_size": len(tokenizer), **changes.pop("llm", {})}
    model = randomised(InternVLChatModel(tiny_config(llm=llm, **changes)), seed).to(dtype)
    assert isinstance(model, InternVLChatModel)
    with torch.no_grad():  # gains of about one, so that every layer moves the logits
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ls" in name or name == "mlp1.0.weight":
                parameter.add_(1)
    model.config.dtype = dtype
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint_files(model, tokenizer, directory)
    return directory


def save_lora(
    base: Path,
    directory: Path,
    *,
    adapter_only: bool,
    llm: int = 4,
    vision: int = 2,
    mlp: bool = False,
    dtype: torch.dtype = torch.float32,
    ps_version: str = "v1",
    seed: int = 3,
) -> InternVLChatModel:
    """A trained-looking adapter on a base; returns the model as it was saved."""
    build = config_for(
        base,
        **{**FROZEN, "freeze_mlp": not mlp},
        use_llm_lora=llm,
        use_backbone_lora=vision,
        dtype=dtype,
        ps_version=ps_version,
    )
    tokenizer = load_tokenizer(str(base))
    model = build_model(build, tokenizer)
    apply_freezing_and_lora(model, build.trainable)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif parameter.requires_grad:
                parameter.add_(0.05)
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint_files(model, tokenizer, directory, adapter_only=adapter_only)
    return model


@torch.no_grad()
def logits_for(model: Any, seed: int = 0) -> torch.Tensor:
    """Of an image and twelve tokens."""
    tokens = model.num_image_token
    model.img_context_token_id = 7
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, 250, (1, 12), generator=generator)
    ids[:, 2 : 2 + tokens] = 7
    size = model.config.image_size
    pixels = torch.randn(1, 3, size, size, generator=generator)
    return model.eval()(pixel_values=pixels, input_ids=ids).logits.float()


def load_fp32(directory: Path) -> InternVLChatModel:
    """As a user does."""
    model = InternVLChatModel.from_pretrained(directory, dtype=torch.float32)
    assert isinstance(model, InternVLChatModel)
    return model.eval()
