"""Which attention kernel runs, and one for packed rows where flash-attn is not available.

Legend: B batch, H query heads, G key/value heads, T tokens of a row, E head width.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from internvl_chat.config import AttentionKernel

SDPA_VARLEN = "sdpa_varlen"
"""Name under which the packed-row attention is registered with transformers."""


def flash_attention_problem(device: torch.device) -> str | None:
    """Why flash_attention_2 cannot run here, with the mend; None if it can."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed: pip install flash-attn (needs a GPU)"
    if device.type != "cuda":
        return f"flash-attn needs a GPU, this run is on {device.type}"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return "flash-attn needs an Ampere GPU or newer"
    return None


def choose_attention(
    requested: AttentionKernel, *, packed: bool, device: torch.device, half_precision: bool
) -> tuple[str, str, str]:
    """Pick the kernels of both towers.

    Args:
        requested: the user's ``--attn_implementation``.
        packed: whether rows hold several samples.
        device: where the model runs.
        half_precision: whether it computes in bf16 or fp16, as flash-attn must.

    Returns:
        Name for the LLM, name for the vision tower (both for transformers' attention interface),
        and the reason as a phrase for the log.
    """
    problem = flash_attention_problem(device)
    if problem is None and not half_precision:
        problem = "flash-attn does not compute in fp32"
    if requested == "flash_attention_2" or (requested == "auto" and problem is None):
        return "flash_attention_2", "flash_attention_2", "flash-attn is installed"
    why = f"as asked ({requested})" if requested != "auto" else problem or ""
    if requested == "eager":
        mask = ", block-diagonal mask for packed rows" if packed else ""
        return "eager", "eager", why + mask
    if packed:
        return SDPA_VARLEN, "sdpa", f"{why}; packed rows by segments"
    return "sdpa", "sdpa", why


def sdpa_varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each segment of a packed row by itself.

    Args:
        query: (1, H, T, E); key and value: (1, G, T, E), G divides H.
        attention_mask: ignored; segments are causal and never see each other.
        cu_seq_lens_q: (segments + 1,) cumulative lengths, from 0 to T; None is one segment.
        segment_lengths: the same as plain numbers, which spares a device read per layer.

    Returns:
        (1, T, H, E), as transformers' attention functions do.
    """
    total = query.shape[2]
    if segment_lengths is None:
        segment_lengths = (
            (total,) if cu_seq_lens_q is None else tuple(cu_seq_lens_q.diff().tolist())
        )
    parts = zip(
        query.split(segment_lengths, dim=2),
        key.split(segment_lengths, dim=2),
        value.split(segment_lengths, dim=2),
        strict=True,
    )
    grouped = query.shape[1] != key.shape[1]
    attended = [
        F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=dropout if module.training else 0.0,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        for q, k, v in parts
    ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Packed rows need no mask tensor: the segments say it all."""


def register_attention() -> None:
    """Make ``sdpa_varlen`` known to transformers; the entry point calls this once."""
    AttentionInterface.register(SDPA_VARLEN, sdpa_varlen_attention)
    AttentionMaskInterface.register(SDPA_VARLEN, _no_mask)
