"""Clocks and rates of a run: what a step took, and what share of it was waiting."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping

import torch

from internvl_chat.errors import UserError
from internvl_chat.machine.peaks import Precision, peaks_of
from internvl_chat.train.trainer_arguments import TrainArguments


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Dense peak of this GPU in FLOP/s; None when unknown (CPUs included)."""
    if device.type != "cuda":
        return None
    peaks = peaks_of(torch.cuda.get_device_name(device))
    return None if peaks is None else peaks.flops(precision)


def peak_line(device: torch.device, precision: Precision) -> str | None:
    """What the log's ``mfu`` is a share of, or why there is none; nothing about a CPU."""
    if device.type != "cuda":
        return None
    peak = peak_flops(device, precision)
    if peak is not None:
        return f"mfu is a share of {peak / 1e12:g} TFLOP/s, this GPU's dense peak in {precision}"
    return (
        f"mfu is not logged: nobody has written down what {torch.cuda.get_device_name(device)} "
        f"reaches in {precision} (internvl_chat/machine/peaks.py)"
    )


def matmul_precision(args: TrainArguments) -> Precision:
    """In what a run computes its matrix products."""
    if args.bf16:
        return "bf16"
    if args.fp16:
        return "fp16"
    return "tf32" if args.tf32 else "fp32"


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


def imbalance(slowest: float, mean: float) -> float:
    """By how much the slowest rank has more to do than the mean one; 1 is evenly shared.

    Args:
        slowest: work of each micro batch's slowest rank, summed over micro batches.
        mean: work of the mean rank, summed likewise; 0 where there is nothing to do.
    """
    return slowest / mean if mean else 1.0


def step_figures(
    *,
    loss: float,
    steps: int,
    seconds: float,
    counts: Mapping[str, float],
    vit_imbalance: float,
    llm_imbalance: float,
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
        vit_imbalance, llm_imbalance: see :func:`imbalance`.
        waited_seconds: of the rank that waited longest for data.
        peak_memory_bytes: of the rank that holds most.
        flops: model FLOPs of one rank, the mean over ranks.
        peak_flops: FLOP/s that one device could do; None (unknown) leaves ``mfu`` out.
        grad_norm: of the last step; None when nobody measured it.
    """
    figures = {
        "loss": loss / steps,
        "samples_per_second": counts["samples"] / seconds,
        "tokens_per_second": counts["tokens"] / seconds,
        "padding_share": 1 - counts["tokens"] / max(counts["positions"], 1),
        "vit_imbalance": vit_imbalance,
        "llm_imbalance": llm_imbalance,
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
