"""Clocks and rates of a run: what a step took, and what share of it was waiting."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from internvl_chat.checkpoint.partition import full_numel
from internvl_chat.errors import UserError

PEAK_FLOPS = {
    "A100": 312e12,
    "A800": 312e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
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
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of macOS and of Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class NonFiniteError(UserError):
    """The loss or a gradient is infinite or no number."""

    exit_code = 5


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


def flops_per_token(parameters: Iterable[nn.Parameter], *, needs_input_grad: bool) -> float:
    """Matrix-multiply FLOPs that one token costs in forward and backward.

    Two per weight and pass: forward, gradient of the input if anything before it trains, gradient
    of the weight if it trains. Attention itself and recomputation are left out, as in the usual
    definition of model FLOPs utilisation (https://arxiv.org/abs/2204.02311, appendix B).
    """
    total = 0.0
    for parameter in parameters:
        passes = 1 + needs_input_grad + parameter.requires_grad
        total += 2.0 * passes * full_numel(parameter)
    return total


@dataclass(frozen=True)
class ModelFlops:
    """Matrix-multiply FLOPs of a chat model in training, by kind of token."""

    per_text_token: float
    """LLM and output layer; the embedding table is a lookup and counts nothing."""
    per_vision_token: float
    vision_tokens_per_tile: int
    """Patches and the class token."""
    tokens_per_tile: int
    """Tokens that the projector hands to the LLM."""
    per_projected_token: float

    @classmethod
    def of_model(cls, model: Any) -> ModelFlops:
        """Count an InternVLChatModel's weights, and what of them trains by now."""
        vision, projector = model.vision_model, model.mlp1
        trains_vision = any(p.requires_grad for p in vision.parameters())
        trains_projector = trains_vision or any(p.requires_grad for p in projector.parameters())
        table = {id(p) for p in model.get_input_embeddings().parameters()}
        text = [p for p in model.language_model.parameters() if id(p) not in table]
        patches = (model.config.image_size // model.config.vision_config.patch_size) ** 2
        needs_text_grad = trains_projector or any(p.requires_grad for p in text)
        return cls(
            per_text_token=flops_per_token(text, needs_input_grad=needs_text_grad),
            per_vision_token=flops_per_token(vision.parameters(), needs_input_grad=trains_vision),
            vision_tokens_per_tile=patches + 1,
            tokens_per_tile=model.num_image_token,
            per_projected_token=flops_per_token(
                projector.parameters(), needs_input_grad=trains_projector
            ),
        )

    def of_batch(self, text_tokens: int, tiles: int) -> float:
        """FLOPs of ``text_tokens`` positions in the LLM and ``tiles`` through tower and projector.

        The tokens of a tile are positions of the text as well: ``input_ids`` holds them.
        """
        return (
            text_tokens * self.per_text_token
            + tiles * self.vision_tokens_per_tile * self.per_vision_token
            + tiles * self.tokens_per_tile * self.per_projected_token
        )


def step_figures(
    *,
    loss: float,
    steps: int,
    seconds: float,
    counts: Mapping[str, float],
    waited_seconds: float,
    peak_memory_bytes: float,
    flops: float,
    peak_flops: float | None,
    grad_norm: float | None,
) -> dict[str, float]:
    """Name the figures of the steps since the last log.

    Args:
        loss: sum over the steps of their losses.
        steps: optimizer steps since the last log, at least 1.
        seconds: wall time of these steps.
        counts: sums over all ranks and steps by :data:`internvl_chat.train.loss.COUNTED`.
        waited_seconds: of the rank that waited longest for data.
        peak_memory_bytes: of the rank that holds most.
        flops: of one rank, the mean over ranks.
        peak_flops: FLOP/s that one device could do; None (unknown) leaves ``mfu`` out.
        grad_norm: of the last step; None when nobody measured it.
    """
    figures = {
        "loss": loss / steps,
        "samples_per_second": counts["samples"] / seconds,
        "tokens_per_second": counts["tokens"] / seconds,
        "padding_share": 1 - counts["tokens"] / max(counts["positions"], 1),
        # Waited by the slowest rank, in the time of this one: clocks start apart.
        "data_wait_share": min(waited_seconds / seconds, 1.0),
        "step_seconds": seconds / steps,
        "peak_memory_gib": peak_memory_bytes / 2**30,
    }
    if grad_norm is not None:
        figures["grad_norm"] = grad_norm
    if peak_flops is not None:
        figures["mfu"] = flops / (seconds * peak_flops)
    return figures


def require_finite(figures: Mapping[str, float], step: int) -> None:
    """Stop a run whose loss or gradient is no number.

    Raises:
        NonFiniteError: with the step and the mend.
    """
    for name in ("loss", "grad_norm"):
        value = figures.get(name, 0.0)
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name.replace('_', ' ')} is {value} at step {step}",
                fix="Lower --learning_rate, lengthen the warm-up, or look at the samples of this "
                "step; checkpoints of earlier steps are intact.",
            )
