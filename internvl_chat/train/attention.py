"""Which attention kernel runs, and two for packed rows.

Legend: B batch, H query heads, G key/value heads, T tokens of a row, E head width.
"""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from internvl_chat.config import AttentionKernel

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

SDPA_VARLEN = "sdpa_varlen"
"""Packed rows by segments, one call of SDPA each; the name that transformers knows it by."""
TORCH_VARLEN = "torch_varlen"
"""Packed rows in one call of torch's flash kernel; the name that transformers knows it by."""
PACKED_BY_BORDERS = ("flash_attention_2", TORCH_VARLEN)
"""Kernels that take a packed row with the borders of its segments on the device."""


def _varlen_keywords(grouped: bool) -> dict[str, Any]:
    """How this version of torch is told that attention is causal, and of grouped heads."""
    known = inspect.signature(varlen_attn).parameters if varlen_attn is not None else {}
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    # Without the argument the kernel sees by itself that there are fewer keys than queries.
    return {**causal, "enable_gqa": True} if grouped and "enable_gqa" in known else causal


_VARLEN_KEYWORDS = {grouped: _varlen_keywords(grouped) for grouped in (False, True)}
"""By whether heads share keys. Found out once: a compiled block reads it as a constant."""
_AS_ASKED = "as asked: "
_FLASH_WIDTH = 8  # widths of a head that the flash kernels take are multiples of it


def _fast_kernel_problem(device: torch.device, name: str) -> str | None:
    """What all flash kernels need of the hardware."""
    if device.type != "cuda":
        return f"{name} needs a GPU, this run is on {device.type}"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return f"{name} needs an Ampere GPU or newer"
    return None


def flash_attention_problem(device: torch.device) -> str | None:
    """Why flash_attention_2 cannot run here, with the mend; None if it can."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed: pip install flash-attn (needs a GPU)"
    return _fast_kernel_problem(device, "flash-attn")


def varlen_problem(device: torch.device) -> str | None:
    """Why torch's own kernel for packed rows cannot run here, with the mend; None if it can."""
    if varlen_attn is None:
        return f"torch {torch.__version__} has no varlen_attn: 2.10 and newer have it"
    return _fast_kernel_problem(device, "torch's varlen_attn")


@dataclass(frozen=True)
class ChosenKernels:
    """Names for transformers' attention interface, and why these."""

    llm: str
    vision: str
    reason: str
    """A phrase for the log."""


def choose_attention(
    requested: AttentionKernel, *, packed: bool, device: torch.device, half_precision: bool
) -> ChosenKernels:
    """Pick the kernels of both towers.

    Packed rows want a kernel that knows where samples begin. torch's own is in its wheel and as
    fast as flash-attn; without it (or without a GPU, or in fp32) flash-attn is taken if it is
    there, else each segment goes through SDPA by itself.

    Args:
        requested: the user's ``--attn_implementation``.
        packed: whether rows hold several samples.
        device: where the model runs.
        half_precision: whether it computes in bf16 or fp16, as the flash kernels must.
    """
    slow = None if half_precision else "flash kernels do not compute in fp32"
    own, installed = (slow or find(device) for find in (varlen_problem, flash_attention_problem))
    if requested == "flash_attention_2":
        return ChosenKernels("flash_attention_2", "flash_attention_2", _AS_ASKED + requested)
    if requested == "eager":
        mask = "; block-diagonal mask for packed rows" if packed else ""
        return ChosenKernels("eager", "eager", _AS_ASKED + requested + mask)
    if not packed:
        return ChosenKernels("sdpa", "sdpa", "rows are not packed")
    if requested == "auto" and own is None:
        return ChosenKernels(TORCH_VARLEN, "sdpa", "torch's varlen_attn for packed rows")
    if requested == "auto" and installed is None:
        return ChosenKernels("flash_attention_2", "flash_attention_2", "flash-attn is installed")
    why = _AS_ASKED + requested if requested != "auto" else own
    return ChosenKernels(SDPA_VARLEN, "sdpa", f"{why}; packed rows by segments")


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


def torch_varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The same in one call of torch's flash kernel, however many segments there are.

    Args:
        query: (1, H, T, E); key and value: (1, G, T, E), G divides H.
        attention_mask: ignored; segments are causal and never see each other.
        dropout: the kernel has none; with dropout the segments go through SDPA one by one.
        cu_seq_lens_q: (segments + 1,) int32 cumulative lengths, from 0 to T; None is one segment
            a row, for which SDPA is as good.
        max_length_q: the longest segment, a plain number.

    Returns:
        (1, T, H, E), as transformers' attention functions do.
    """
    drops = dropout > 0 and module.training
    if cu_seq_lens_q is None or max_length_q is None or drops or varlen_attn is None:
        return sdpa_varlen_attention(
            module, query, key, value, None, dropout, scaling, cu_seq_lens_q
        )
    device, width = query.device.type, query.shape[-1]
    if torch.is_autocast_enabled(device):  # the rotation leaves queries and keys in fp32
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if scaling is None:
        scaling = width**-0.5  # of the true width, not of the padded one
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]  # (T, heads, E)
    if width % _FLASH_WIDTH:
        rows = [F.pad(row, (0, -width % _FLASH_WIDTH)) for row in rows]
    attended: Any = varlen_attn(
        rows[0],
        rows[1],
        rows[2],
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        **_VARLEN_KEYWORDS[query.shape[1] != key.shape[1]],
    )
    return attended[None, ..., :width], None


def settle_sdpa(device: torch.device, *, half_precision: bool, lengths_repeat: bool) -> str | None:
    """Choose, for the whole process, between the kernels of PyTorch's SDPA.

    On Hopper and newer it prefers cuDNN's, which plan anew for each shape: 0.11 to 0.14 s for
    forward and backward on an H100, where the flash kernel needs what the arithmetic does. On
    shapes that it knows cuDNN makes a block 5 to 12 % faster. So it is left out unless the rows'
    lengths are rounded.

    Args:
        device: where the run computes.
        half_precision: whether it does in bf16 or fp16; both take no fp32.
        lengths_repeat: whether padded rows are rounded up, so that there are few lengths.

    Returns:
        What was chosen, as a phrase for the log; None where there is nothing to choose.
    """
    if device.type != "cuda" or not half_precision:
        return None
    torch.backends.cuda.enable_cudnn_sdp(lengths_repeat)
    if lengths_repeat:
        return "SDPA may take cuDNN's kernels: lengths are rounded, its plans are used again"
    return "SDPA without cuDNN's kernels, which would plan anew for each length"


def register_attention() -> None:
    """Make our kernels known to transformers; the entry point calls this once.

    No way to make a mask is registered with them: transformers then leaves the mask out, and does
    not look at the positions on the device (which would wait for it) to find the samples of a row.
    """
    AttentionInterface.register(SDPA_VARLEN, sdpa_varlen_attention)
    AttentionInterface.register(TORCH_VARLEN, torch_varlen_attention)
