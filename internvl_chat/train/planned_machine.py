"""The GPUs that a run is planned for, by name or by their memory alone. Without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from internvl_chat.errors import ConfigError
from internvl_chat.machine.peaks import DEVICES, DevicePeaks, peaks_of

_USUAL: Final = {
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "h800": "NVIDIA H800",
    "a100": "NVIDIA A100-SXM4-80GB",
    "a100 40gb": "NVIDIA A100-SXM4-40GB",
    "a800": "NVIDIA A800-SXM4-80GB",
    "v100": "Tesla V100-SXM2-32GB",
    "v100 16gb": "Tesla V100-SXM2-16GB",
    "rtx 6000 ada": "NVIDIA RTX 6000 Ada Generation",
}
"""What people call a GPU that comes in several kinds -> the kind that is usually meant."""
_FORMS: Final = {
    "NVIDIA H100 80GB HBM3": {"sxm", "sxm5"},
    "NVIDIA H200": {"sxm", "sxm5", "hbm3e"},
    "NVIDIA H800": {"sxm", "sxm5"},
    "NVIDIA H20": {"sxm", "sxm5", "hbm3"},
    "NVIDIA B200": {"sxm", "sxm6"},
}
"""Words that are said of a GPU and are not in its name."""
_GIB: Final = {"": 1.0, "g": 1.0, "m": 2.0**-10}
_MOST_GIB: Final = 1024
"""More than any GPU has: such a number is no memory in GiB."""


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
    is_cpu: bool = False
    """Whether there are none: then these are a process's share of the machine."""


def planned_machine(gpu: str, num_gpus: int) -> PlannedMachine:
    """Find a GPU by its exact name, by what it is called, or take its memory.

    Args:
        gpu: ``NVIDIA H100 PCIe``, ``h100``, ``RTX4090``, ``A100-80G``, ``80``, ``80GiB``.
        num_gpus: of the run.

    Raises:
        ConfigError: no such GPU is known, several are, or a number is not positive.
    """
    if num_gpus < 1:
        raise ConfigError(f"{num_gpus}: want a number > 0", where="--num_gpus")
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([gm])(?:i?b)?)?", gpu.strip(), re.IGNORECASE)
    if size and not any(gpu.strip() in _words(device.device) for device in DEVICES):
        memory = float(size[1]) * _GIB[(size[2] or "").lower()]
        if not 0 < memory <= _MOST_GIB:
            raise ConfigError(
                f"{gpu}: want memory > 0 and up to {_MOST_GIB} GiB, or a GPU's name", where="--gpu"
            )
        return PlannedMachine(
            num_gpus=num_gpus, gpu=f"{memory:g} GiB", memory_gib=memory, peaks=None
        )
    peaks = _find(gpu)
    return PlannedMachine(
        num_gpus=num_gpus, gpu=peaks.device, memory_gib=peaks.memory_gib, peaks=peaks
    )


def _words(name: str) -> list[str]:
    """Of a name, as people write it: ``RTX4090``, ``H100PCIe``, ``A100-80G``, ``80 GB``."""
    name = name.casefold().replace("_", " ")
    name = re.sub(r"(?<![\w.])(\d+)\s*g(?:i?b)?(?!\w)", r"\1gb", name)
    name = re.sub(r"\b(rtx|gtx)(?=a?\d)", r"\1 ", name)
    name = re.sub(r"\b([a-z]{1,2}\d+s?)(?=(?:pcie|nvl|sxm\d?)\b)", r"\1 ", name)
    return [word for word in re.split(r"[\s\-]+", name) if word not in ("", "nvidia")]


def _find(gpu: str) -> DevicePeaks:
    words = _words(gpu)
    usual = peaks_of(_USUAL.get(words[0] if words else "", ""))
    exact = peaks_of(gpu) or peaks_of(_USUAL.get(" ".join(words), ""))
    if exact is not None:
        return exact
    found = [device for device in DEVICES if words and _is_called(device, words)]
    if usual in found and usual is not None:
        return usual
    if len(found) == 1:
        return found[0]
    names = [device.device for device in found or DEVICES]
    problem = f"{gpu!r} is one of several" if found else f"no GPU {gpu!r} is known"
    raise ConfigError(
        problem,
        where="--gpu",
        fix=f"Give {', '.join(names)}; or its memory in GiB (--gpu 80), then no hours are told.",
    )


def _is_called(device: DevicePeaks, words: Sequence[str]) -> bool:
    """Whether all that was said is true of a GPU."""
    own = set(_words(device.device)) | _FORMS.get(device.device, set())
    own |= {"sxm" for word in own if re.fullmatch(r"sxm\d", word)}
    return all(word in own or _is_memory(word, device.memory_gib) for word in words)


def _is_memory(word: str, gib: float) -> bool:
    """Whether a word is this memory as it is sold: 24 GB are 22.5 GiB where the card checks it."""
    size = re.fullmatch(r"(\d+)gb", word)
    return size is not None and 0.92 * int(size[1]) <= gib <= 1.02 * int(size[1])
