"""What DeepSpeed's ZeRO is told about its buffers, with its own defaults.

Sizes are in elements, as in a DeepSpeed file's section ``zero_optimization``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

DEFAULTS: Final = {
    "reduce_bucket_size": 5e8,
    "allgather_bucket_size": 5e8,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_model_persistence_threshold": sys.maxsize,
    "stage3_max_live_parameters": 1e9,
    "sub_group_size": 1e9,
}
"""DeepSpeed's own (``deepspeed/runtime/zero/config.py`` of 0.19), where a file says nothing."""
_CAPPED = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")
"""What a run caps at the model's size (``shrink_buffers`` of ``train/zero.py``)."""


@dataclass(frozen=True, kw_only=True)
class ZeroSettings:
    """The part of a DeepSpeed file that decides about memory."""

    stage: int
    """0 to 3."""
    sizes: Mapping[str, int]
    """In elements, by key of ``zero_optimization``."""
    overlaps: bool
    """Whether gradients are reduced while the backward pass goes on: two buckets."""
    is_contiguous: bool
    """Whether gradients are copied into a bucket."""
    offloads_optimizer: bool
    offloads_weights: bool
    gradient_bytes: int | None
    """Of a gradient as it is accumulated (``data_types``); None for the weights' own."""

    @classmethod
    def of(cls, config: Mapping[str, Any], *, num_parameters: int) -> ZeroSettings:
        """Read a DeepSpeed configuration; "auto" is what our trainer makes of it.

        Args:
            config: the whole file as a mapping.
            num_parameters: of the model, which caps the buckets.
        """
        zero = config.get("zero_optimization") or {}
        stage = int(zero.get("stage", 0))
        sizes = {
            key: int(default if zero.get(key, "auto") == "auto" else zero[key])
            for key, default in DEFAULTS.items()
        }
        sizes |= {key: min(sizes[key], max(num_parameters, 1)) for key in _CAPPED}
        overlaps = zero.get("overlap_comm")
        accumulates = (config.get("data_types") or {}).get("grad_accum_dtype")
        return cls(
            stage=stage,
            sizes=sizes,
            overlaps=stage == 3 if overlaps is None else bool(overlaps),
            is_contiguous=bool(zero.get("contiguous_gradients", True)),
            offloads_optimizer=_is_elsewhere(zero.get("offload_optimizer")),
            offloads_weights=stage == 3 and _is_elsewhere(zero.get("offload_param")),
            gradient_bytes={"fp32": 4, "fp16": 2, "bf16": 2}.get(str(accumulates)),
        )


def _is_elsewhere(section: Mapping[str, Any] | None) -> bool:
    return (section or {}).get("device", "none") not in ("none", None)
