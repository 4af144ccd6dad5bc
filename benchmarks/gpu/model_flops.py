"""Model FLOPs and peaks as the trainer's own ``mfu`` counts them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

_HAS_COSTS = importlib.util.find_spec("internvl_chat.machine.peaks") is not None


def flops_of_batch(model: Any, lengths: Sequence[int], tiles: int, supervised: int) -> float:
    """FLOPs of forward and backward, without recomputation and padding.

    Args:
        model: an InternVLChatModel, with what trains decided.
        lengths: tokens of each sample.
        tiles: through the vision tower.
        supervised: positions with a label.
    """
    if _HAS_COSTS:
        from internvl_chat.costs.flops import ModelFlops

        return ModelFlops.of_model(model).of_batch(lengths, tiles, supervised)
    from internvl_chat.train.metrics import ModelFlops as TokenFlops

    return TokenFlops.of_model(model).of_batch(sum(lengths), tiles)


def peak_of(name: str) -> float | None:
    """Dense bf16 peak in FLOP/s by the card's exact name; None where it is not known."""
    if _HAS_COSTS:
        from internvl_chat.machine.peaks import peaks_of

        peaks = peaks_of(name)
        return peaks.flops("bf16") if peaks else None
    from internvl_chat.train.metrics import PEAK_FLOPS

    return next((peak for word, peak in PEAK_FLOPS.items() if word in name), None)
