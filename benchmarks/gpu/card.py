"""What the card itself reaches: a matrix product and a copy in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

REPETITIONS = 12


def is_missing(device: str) -> bool:
    """Whether there is no such device; asked before gigabytes are written to measure it with."""
    return device == "cuda" and not torch.cuda.is_available()


def measure_card(device: torch.device) -> dict[str, Any]:
    """Name, memory, TFLOP/s of an 8192 cubed bf16 product and TB/s of a copy (read and written).

    On a CPU the sizes are small and the figures only try the program.
    """
    on_gpu = device.type == "cuda"
    side, copied = (8192, 2 * 2**30) if on_gpu else (256, 2**22)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    product = median_seconds(lambda: torch.mm(a, b), device)
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device)
    properties = torch.cuda.get_device_properties(device) if on_gpu else None
    return {
        "name": properties.name if properties else "CPU",
        "memory_gib": properties.total_memory / 2**30 if properties else None,
        "matmul_tflops": 2 * side**3 / product / 1e12,
        "copy_tb_per_second": 2 * copied / copy / 1e12,
        "torch": torch.__version__,
    }


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of one call, warm; the median of ``REPETITIONS``."""
    for _ in range(3):
        work()
    times = []
    for _ in range(REPETITIONS):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
