"""How matrix products of fp32 numbers are computed: with tensor cores (TF32) or without."""

from __future__ import annotations

import torch


def tf32_problem(device: torch.device) -> str | None:
    """Why products of fp32 numbers cannot use TF32 here; None if they can."""
    if device.type != "cuda":
        return f"TF32 needs a GPU of Ampere or newer, this run is on {device.type}"
    if torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] < 8:
        return "TF32 needs a GPU of Ampere or newer"
    return None


def settle_products(device: torch.device, *, tf32: bool | None, is_fp32: bool) -> str | None:
    """Finish, for the whole process, what transformers has done about ``--tf32``.

    It sets ``torch.backends.fp32_precision`` alone. Who asks by the older names (Inductor's search
    for the fastest kernel, libraries) then gets an error about a mix of both, until the older one
    says the same.

    Args:
        device: where the run computes.
        tf32: the argument; None where nobody gave it.
        is_fp32: whether the run computes in fp32.

    Returns:
        A hint for the log; None if there is none.
    """
    if tf32 is not None and device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if tf32 is None and is_fp32 and tf32_problem(device) is None:
        return (
            "products of fp32 numbers use no tensor cores: --tf32 True makes them seven times as "
            "fast on an H100, factors rounded to 10 bits (bf16 has 7)"
        )
    return None
