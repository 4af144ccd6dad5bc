"""What a run writes: checkpoints with what it takes to continue, and the finished model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from internvl_chat.costs.holdings import ADAM_BYTES, MASTER_BYTES, ParameterSize

_SMALL_FILES: Final = 4 * 2**20
"""Tokenizer, code and settings beside the weights of every checkpoint."""


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Bytes."""

    checkpoint: int
    """One ``checkpoint-N``."""
    num_checkpoints: int
    """At the fullest moment: a new one is complete before the oldest goes."""
    final: int
    """The finished model, or adapter, at OUTPUT_DIR's root."""

    @property
    def total(self) -> int:
        """At the fullest moment, the end of the run."""
        return self.checkpoint * self.num_checkpoints + self.final


def disk_need(
    sizes: Sequence[ParameterSize],
    *,
    saves_adapter: bool,
    deepspeed: bool,
    weight_bytes: int,
    final_bytes: int,
    keeps_state: bool,
    num_saves: int,
    limit: int | None,
) -> DiskNeed:
    """Add up what is written.

    Args:
        sizes: of the model.
        saves_adapter: whether a checkpoint holds what trains alone.
        deepspeed: whether it writes the state, masters included.
        weight_bytes: of a weight as it trains.
        final_bytes: of a weight of the finished model.
        keeps_state: whether checkpoints can be continued.
        num_saves: checkpoints that the run writes in all.
        limit: how many stay; None keeps all.
    """
    trained = sum(size.numel for size in sizes if size.is_trained)
    saved = trained if saves_adapter else sum(size.numel for size in sizes)
    # DeepSpeed adds the trained weights as it has them, without it they are written once more.
    state = trained * (weight_bytes + ADAM_BYTES + (MASTER_BYTES if deepspeed else 0))
    kept = num_saves if limit is None else min(num_saves, limit + 1)
    return DiskNeed(
        checkpoint=saved * weight_bytes + (state if keeps_state else 0) + _SMALL_FILES,
        num_checkpoints=kept,
        final=saved * final_bytes + _SMALL_FILES,
    )
