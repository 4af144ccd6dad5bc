"""The ceiling: the same model and batches in a plain PyTorch loop.

Modules are written out with torch alone and hold their parameters under our checkpoint's names, so
that the weights load and the losses can be compared step by step. Batches are collated beforehand
and kept in memory; attention runs by segments, logits exist for supervised rows only, AdamW is
fused, gradients are clipped as the trainers clip them.

Legend: N images, S vision tokens, C vision width, T tokens, D LLM width, H heads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from . import workload as wl

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class VisionAttention(nn.Module):
    """Attention over all tokens of an image, q and k normalised over the whole width."""

    def __init__(self) -> None:
        super().__init__()
        width, eps = wl.VISION["hidden_size"], wl.VISION["layer_norm_eps"]
        self.num_heads = wl.VISION["num_attention_heads"]
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = Norm(width, eps), Norm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        heads = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (t.view(heads).transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    """Two layers with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(wl.VISION["hidden_size"], wl.VISION["intermediate_size"])
        self.fc2 = nn.Linear(wl.VISION["intermediate_size"], wl.VISION["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """Pre-norm block with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        width, eps = wl.VISION["hidden_size"], wl.VISION["layer_norm_eps"]
        self.attn, self.mlp = VisionAttention(), VisionMlp()
        self.norm1, self.norm2 = Norm(width, eps), Norm(width, eps)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.attn(self.norm1(x)), self.ls1)
        return torch.addcmul(x, self.mlp(self.norm2(x)), self.ls2)


class VisionEmbeddings(nn.Module):
    """Patches, class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        width, patch = wl.VISION["hidden_size"], wl.VISION["patch_size"]
        num_patches = (wl.IMAGE_SIZE // patch) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + num_patches, width))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), -1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding


class Vision(nn.Module):
    """InternViT."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            VisionBlock() for _ in range(wl.VISION["num_hidden_layers"])
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for block in self.encoder.layers:
            x = block(x)
        return x


class Attention(nn.Module):
    """Causal grouped-query attention, segment by segment of a packed row."""

    def __init__(self) -> None:
        super().__init__()
        width = wl.LLM["hidden_size"]
        self.num_heads = wl.LLM["num_attention_heads"]
        self.num_groups = wl.LLM["num_key_value_heads"]
        self.head_dim = width // self.num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, self.num_groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.num_groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        q = rotate(self.q_proj(x).view(1, -1, self.num_heads, self.head_dim), rotation)
        k = rotate(self.k_proj(x).view(1, -1, self.num_groups, self.head_dim), rotation)
        v = self.v_proj(x).view(1, -1, self.num_groups, self.head_dim)
        parts = zip(*(t.transpose(1, 2).split(lengths, dim=2) for t in (q, k, v)), strict=True)
        context = [
            F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts
        ]
        return self.o_proj(torch.cat(context, dim=2).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Gated SiLU."""

    def __init__(self) -> None:
        super().__init__()
        width, inner = wl.LLM["hidden_size"], wl.LLM["intermediate_size"]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Llama's decoder block."""

    def __init__(self) -> None:
        super().__init__()
        width, eps = wl.LLM["hidden_size"], wl.LLM["rms_norm_eps"]
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(width, eps), Norm(width, eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, lengths)
        return x + self.mlp(self.post_attention_layernorm(x))


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of (1, T, H, E), halves layout."""
    cos, sin = rotation
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class BareInternVL(nn.Module):
    """The model of the workload."""

    def __init__(self) -> None:
        super().__init__()
        width, shuffled = wl.LLM["hidden_size"], 4 * wl.VISION["hidden_size"]
        self.vision_model = Vision()
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(shuffled), nn.Linear(shuffled, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_model = nn.Module()
        self.language_model.model = inner = nn.Module()
        inner.embed_tokens = nn.Embedding(wl.VOCABULARY_SIZE, width)
        inner.layers = nn.ModuleList(Block() for _ in range(wl.LLM["num_hidden_layers"]))
        inner.norm = Norm(width, wl.LLM["rms_norm_eps"])
        self.language_model.lm_head = nn.Linear(width, wl.VOCABULARY_SIZE, bias=False)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N*K, D); pixel shuffle v2."""
        x = self.vision_model(pixels)[:, 1:]
        side = int(x.shape[1] ** 0.5)
        x = x.view(len(x), side // 2, 2, side // 2, 2, -1)
        x = x.transpose(2, 3).reshape(len(x) * (side // 2) ** 2, -1)
        return self.mlp1(x)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Mean loss over the supervised tokens of a packed row."""
        inner = self.language_model.model
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        x = inner.embed_tokens(ids)
        x = x.masked_scatter(
            (ids == batch["image_token_id"]).unsqueeze(-1), self.image_tokens(batch["pixels"])
        )[None]
        frequencies = 10000 ** (-torch.arange(0, 64, 2) / 64)
        angles = batch["position_ids"][0][:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)[None, :, None]
        rotation = angles.cos(), angles.sin()
        for block in inner.layers:
            x = block(x, rotation, batch["lengths"])
        rows = (labels[1:] != -100).nonzero().squeeze(1)
        logits = self.language_model.lm_head(inner.norm(x[0][rows]))
        return F.cross_entropy(logits, labels[rows + 1])


def run(workload: wl.Workload, batches_path: Path, *, num_steps: int) -> dict[str, Any]:
    """Train over the batches and time each step."""
    torch.manual_seed(0)
    model = BareInternVL()
    model.load_state_dict(load_file(workload.model_dir / "model.safetensors"))
    batches = torch.load(batches_path, weights_only=True)[:num_steps]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=wl.LEARNING_RATE,
        betas=wl.BETAS,
        weight_decay=wl.WEIGHT_DECAY,
        fused=True,
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    seconds, losses, tokens = [], [], []
    for batch in batches:
        start = time.perf_counter()
        batch["pixels"] = (batch["pixel_values"].float().div_(255) - mean) / std
        loss = model(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), wl.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        del batch["pixels"]
        seconds.append(time.perf_counter() - start)
        tokens.append(batch["input_ids"].numel())
    return {"step_seconds": seconds, "losses": losses, "tokens": tokens, "padded": tokens}
