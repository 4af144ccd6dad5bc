"""Kernels by what they do, and the time in which none ran. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CLASSES: tuple[tuple[str, str], ...] = (
    ("communication", r"nccl|allreduce|all_gather|reduce_scatter"),
    ("attention", r"flash|fmha|sdpa|attention|attn"),
    ("optimizer", r"multi_tensor_apply|adam|lpnorm|_foreach_"),
    (
        "matrix products",
        r"gemm|nvjet|cutlass|cublas|xmma|gemv|splitk|aten::(add)?b?mm|conv|dot_kernel",
    ),
    ("copies and casts", r"memcpy|memset|copy|catarray|fillfunctor|aten::(cat|fill_|zero_|to)\b"),
    ("vocabulary loss", r"softmax|nll|cross_entropy|logsumexp"),
    ("indexing", r"index|gather|scatter|embedding|cub::|radix|scan"),
    ("elementwise and norms", r"elementwise|reduce|norm|triton|gelu|silu|aten::"),
)
"""Class and what its kernels' names hold, in lower case; the first that fits counts."""
OTHER = "other"
_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in CLASSES)


@dataclass(frozen=True)
class Kernel:
    """One kernel or copy on the device; times in microseconds."""

    name: str
    start: float
    end: float


def class_of(name: str) -> str:
    """What a kernel of that name does."""
    lowered = name.lower()
    return next((known for known, pattern in _COMPILED if pattern.search(lowered)), OTHER)


def seconds_by_class(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Sum of the kernels' own times, longest class first."""
    sums: dict[str, float] = {}
    for kernel in kernels:
        kind = class_of(kernel.name)
        sums[kind] = sums.get(kind, 0.0) + (kernel.end - kernel.start) / 1e6
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def busy_seconds(kernels: Sequence[Kernel]) -> float:
    """Time in which at least one kernel ran."""
    busy, reached = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        busy += max(0.0, kernel.end - max(kernel.start, reached))
        reached = max(reached, kernel.end)
    return busy / 1e6


def longest_kernels(kernels: Iterable[Kernel], number: int) -> list[tuple[str, int, float]]:
    """Name, calls and seconds of the kernels that took most time together."""
    calls: dict[str, list[float]] = {}
    for kernel in kernels:
        calls.setdefault(kernel.name, []).append((kernel.end - kernel.start) / 1e6)
    ordered = sorted(calls.items(), key=lambda item: -sum(item[1]))
    return [(name, len(times), sum(times)) for name, times in ordered[:number]]
