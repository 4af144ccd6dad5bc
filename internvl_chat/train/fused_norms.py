"""RMS norms in one kernel each, in training in half precision on a GPU.

Written out, as transformers has it, the norm of a Llama block is seven kernels forward and more
backward, each of which reads and writes its whole input, part of them in fp32. PyTorch's own is
one, computed in fp32 and rounded once: a block of 4,096 wide takes 11 % less time with it on an
H200 (``docs/performance.md``), and starts a third fewer kernels.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internvl_chat.config import AttentionKernel

_EPS: Final = {
    "GraniteRMSNorm": "variance_epsilon",
    "InternRMSNorm": "eps",
    "LlamaRMSNorm": "variance_epsilon",
    "MistralRMSNorm": "variance_epsilon",
    "Phi3RMSNorm": "variance_epsilon",
    "Qwen2RMSNorm": "variance_epsilon",
    "Qwen3RMSNorm": "variance_epsilon",
}
"""Classes that compute ``weight * x / sqrt(mean(x**2) + eps)``, and what they call eps. Others
bear the name too and multiply by ``1 + weight``."""


class FusedRMSNorm(nn.Module):
    """RMS norm over the last axis, with the weight of the module whose place it takes.

    Beside the one that is written out it rounds once instead of twice, after the weight.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., C) to the same, in the input's dtype or, if that is wider, in the weight's."""
        weight, device = self.weight, hidden_states.device.type
        if hidden_states.dtype != weight.dtype:
            return weight * F.rms_norm(hidden_states, weight.shape, None, self.eps)
        if not torch.is_autocast_enabled(device):
            return F.rms_norm(hidden_states, weight.shape, weight, self.eps)
        with torch.autocast(device, enabled=False):  # it would make fp32 of input and output
            return F.rms_norm(hidden_states, weight.shape, weight, self.eps)

    def extra_repr(self) -> str:
        """For the printed model."""
        return f"eps={self.eps}"


def wants_fused_norms(
    requested: AttentionKernel, device: torch.device, *, half_precision: bool
) -> bool:
    """Whether a run's norms are fused: on a GPU in half precision.

    Args:
        requested: the user's ``--attn_implementation``; "eager" is for debugging, where everything
            stays as it is written out.
        device: where the run computes.
        half_precision: whether it does in bf16 or fp16.
    """
    return half_precision and device.type == "cuda" and requested != "eager"


def fuse_norms(model: nn.Module) -> int:
    """Put :class:`FusedRMSNorm` in the place of norms that are written out; names stay.

    Args:
        model: partitioned by ZeRO-3 or not, before DeepSpeed takes it over. Parameters stay the
            same objects.

    Returns:
        How many.
    """
    count = 0
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            eps = _EPS.get(type(norm).__name__)
            if eps is not None:
                weight: Any = norm.weight
                fused = FusedRMSNorm(weight, getattr(norm, eps))
                setattr(parent, name, fused.train(norm.training))
                count += 1
    return count
