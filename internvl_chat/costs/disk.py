"""What a run writes: checkpoints with what it takes to continue, and the finished model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from internvl_chat.costs.holdings import MASTER_BYTES, ParameterSize, state_bytes
from internvl_chat.costs.optimizer_state import OptimizerState

_SMALL_FILES: Final = 2**20
"""Tokenizer, code and settings beside the weights of every checkpoint."""


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Bytes."""

    checkpoint: int
    """One ``checkpoint-N``."""
    num_kept: int
    """That stay."""
    num_at_once: int
    """While one is saved: it is complete before the oldest goes."""
    final: int
    """The finished model, or adapter, at OUTPUT_DIR's root, which is written last."""

    @property
    def total(self) -> int:
        """At the fullest moment."""
        at_the_end = self.checkpoint * self.num_kept + self.final
        return max(self.checkpoint * self.num_at_once, at_the_end)


def disk_need(
    sizes: Sequence[ParameterSize],
    *,
    saves_adapter: bool,
    optimizer: OptimizerState,
    stage: int | None,
    world_size: int,
    weight_bytes: int | None,
    final_bytes: int,
    keeps_state: bool,
    num_saves: int,
    limit: int | None,
) -> DiskNeed:
    """Add up what is written.

    Args:
        sizes: of the model.
        saves_adapter: whether a checkpoint holds what trains alone.
        optimizer: what it keeps.
        stage: of ZeRO; None without DeepSpeed.
        world_size: ranks among which ZeRO cuts.
        weight_bytes: of a weight as it trains; None for what each is held in.
        final_bytes: of a weight of the finished model.
        keeps_state: whether checkpoints can be continued.
        num_saves: checkpoints that the run writes in all.
        limit: how many stay; None keeps all.
    """
    trained = [size for size in sizes if size.is_trained]
    saved = trained if saves_adapter else sizes
    count = sum(size.numel for size in trained)

    def held(some: Sequence[ParameterSize]) -> int:
        return int(sum(size.numel * (weight_bytes or size.held_bytes) for size in some))

    state = state_bytes(sizes, optimizer, stage=stage or 0, world_size=world_size)
    if stage or (stage == 0 and weight_bytes != MASTER_BYTES):
        state += MASTER_BYTES * count
    # The trained weights are written once more, but for ZeRO-3, which has the masters of them.
    state += 0 if stage == 3 else held(trained)
    return DiskNeed(
        checkpoint=held(saved) + (state if keeps_state else 0) + _SMALL_FILES,
        num_kept=num_saves if limit is None else min(num_saves, limit),
        num_at_once=num_saves if limit is None else min(num_saves, limit + 1),
        final=sum(size.numel for size in saved) * final_bytes + _SMALL_FILES,
    )
