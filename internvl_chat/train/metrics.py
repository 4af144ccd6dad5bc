"""Clocks and rates of a run: what a step took, and what share of it was waiting."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable

import torch
from torch import nn

PEAK_FLOPS = {
    "A100": 312e12,
    "A800": 312e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "L40": 181e12,
    "A6000": 155e12,
    "4090": 165e12,
}
"""Dense bfloat16 peak by a word of the device's name; from the vendors' data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """Peak of this GPU in FLOP/s; None when unknown (CPUs included)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in PEAK_FLOPS.items() if word in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class StepClock:
    """Wall time since the last reading, and how much of it went into waiting for data."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew, so that what lies before (evaluation, saving) is not counted."""
        self._start = time.perf_counter()
        self._waited = 0.0

    def add_wait(self, seconds: float) -> None:
        """Count time in which the trainer waited for a micro batch."""
        self._waited += seconds

    def read(self) -> tuple[float, float]:
        """Return (seconds, seconds waited) since the last reading and start anew."""
        elapsed, waited = time.perf_counter() - self._start, self._waited
        self.reset()
        return max(elapsed, 1e-9), waited


def full_size(parameter: nn.Parameter) -> int:
    """Number of values of a parameter, ZeRO-3 partitioned (``ds_numel``) or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def flops_per_token(parameters: Iterable[nn.Parameter], *, needs_input_grad: bool) -> float:
    """Matrix-multiply FLOPs that one token costs in forward and backward.

    Two per weight and pass: forward, gradient of the input if anything before it trains, gradient
    of the weight if it trains. Attention itself and recomputation are left out, as in the usual
    definition of model FLOPs utilisation (https://arxiv.org/abs/2204.02311, appendix B).
    """
    total = 0.0
    for parameter in parameters:
        passes = 1 + needs_input_grad + parameter.requires_grad
        total += 2.0 * passes * full_size(parameter)
    return total
