"""The GPUs that a run is planned for, by name or by their memory alone. Without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from internvl_chat.errors import ConfigError
from internvl_chat.machine.peaks import DEVICES, DevicePeaks, peaks_of

_USUAL: Final = {
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "h800": "NVIDIA H800",
    "a100": "NVIDIA A100-SXM4-80GB",
    "a100 80gb": "NVIDIA A100-SXM4-80GB",
    "a100 40gb": "NVIDIA A100-SXM4-40GB",
    "a800": "NVIDIA A800-SXM4-80GB",
    "v100": "Tesla V100-SXM2-32GB",
    "rtx 6000 ada": "NVIDIA RTX 6000 Ada Generation",
}
"""What people call a GPU that comes in several kinds -> the kind that is usually meant."""


@dataclass(frozen=True, kw_only=True)
class PlannedMachine:
    """What a run is planned for."""

    num_gpus: int
    gpu: str
    """Its exact name, or ``80 GiB``."""
    memory_gib: float
    """Of each."""
    peaks: DevicePeaks | None
    """None where the memory alone is known."""


def planned_machine(gpu: str, num_gpus: int) -> PlannedMachine:
    """Find a GPU by its exact name, by what it is called, or take its memory.

    Args:
        gpu: ``NVIDIA H100 PCIe``, ``h100``, ``80``, ``80GiB``.
        num_gpus: of the run.

    Raises:
        ConfigError: no such GPU is known, several are, or a number is not positive.
    """
    if num_gpus < 1:
        raise ConfigError(f"{num_gpus}: want a number > 0", where="--num_gpus")
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:gi?b?)?", gpu.strip(), re.IGNORECASE)
    if size:
        memory = float(size[1])
        if memory <= 0:
            raise ConfigError(f"{gpu}: want memory > 0 GiB", where="--gpu")
        return PlannedMachine(
            num_gpus=num_gpus, gpu=f"{memory:g} GiB", memory_gib=memory, peaks=None
        )
    peaks = _find(gpu)
    return PlannedMachine(
        num_gpus=num_gpus, gpu=peaks.device, memory_gib=peaks.memory_gib, peaks=peaks
    )


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_\-]+", name.casefold()) if word not in ("", "nvidia")]


def _find(gpu: str) -> DevicePeaks:
    exact = peaks_of(gpu) or peaks_of(_USUAL.get(" ".join(_words(gpu)), ""))
    if exact is not None:
        return exact
    words = set(_words(gpu))
    found = [device for device in DEVICES if words and words <= set(_words(device.device))]
    if len(found) == 1:
        return found[0]
    names = [device.device for device in found or DEVICES]
    problem = f"{gpu!r} is one of several" if found else f"no GPU {gpu!r} is known"
    raise ConfigError(
        problem,
        where="--gpu",
        fix=f"Give {', '.join(names)}; or its memory in GiB (--gpu 80), then no hours are told.",
    )
