"""Import one package in a process of its own and tell, as JSON, what it can do here.

``python probes.py NAME``: a package that is damaged may raise anything, or take its process down,
and is told by its exit status and its last words. Standard library only, beside what is probed.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any


def torch_facts() -> dict[str, Any]:
    """Builds and devices, as torch sees them."""
    import torch

    cuda = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "threads": torch.get_num_threads(),
        "gpus": [],
        "backend": "nccl" if cuda and torch.distributed.is_nccl_available() else "gloo",
        "mps": torch.backends.mps.is_available(),
    }
    for index in range(torch.cuda.device_count() if cuda else 0):
        device = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        facts["gpus"].append(
            {
                "name": device.name,
                "memory_gib": round(device.total_memory / 2**30, 1),
                "compute_capability": f"{device.major}.{device.minor}",
                "bf16": bf16,
            }
        )
    if cuda:
        version = torch.backends.cudnn.version()
        facts["cudnn"] = str(version) if version else None
        if facts["backend"] == "nccl":
            facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return facts


def bitsandbytes_facts() -> dict[str, Any]:
    """Whether a small matrix can be brought to 4 bits and to int8 on the device of a run."""
    import torch
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.ones(64, 64, dtype=torch.float16, device=device)
    functional.quantize_4bit(matrix, quant_type="nf4")
    functional.int8_vectorwise_quant(matrix)
    return {"device": device}


def av_facts() -> dict[str, Any]:
    """Which of the usual codecs this build reads."""
    import av

    names = ("h264", "hevc", "vp9", "av1")
    return {"codecs": [name for name in names if name in av.codecs_available]}


def pillow_facts() -> dict[str, Any]:
    """Which formats this build reads."""
    from PIL import features

    return {"formats": [name for name in ("jpg", "webp", "avif") if features.check(name)]}


def imported(name: str) -> dict[str, Any]:
    """Nothing but that it can be imported."""
    importlib.import_module(name)
    return {}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": torch_facts,
    "bitsandbytes": bitsandbytes_facts,
    "av": av_facts,
    "PIL": pillow_facts,
}
"""Module -> what more than importing it is asked."""


def main() -> None:
    """Probe the module that the command line names."""
    del sys.path[0]  # this folder: its names must not hide anybody's
    name = sys.argv[1]
    facts = PROBES[name]() if name in PROBES else imported(name)
    sys.stdout.write("\n" + json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
