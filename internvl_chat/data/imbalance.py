"""How evenly the ranks are busy under a plan: what the plan says, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internvl_chat.data.balance import StepCut
from internvl_chat.data.epoch_plan import EpochPlan

MOST_STEPS = 64
MOST_PACKS = 65_536
"""Looked at before a run, so that it takes a second at most."""


@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """Of some steps of a plan. Ratios are the slowest rank's work over the mean of all ranks', by
    micro step, each micro step counting by its work: what the run would be faster if none waited.
    """

    steps: int
    padding: float
    """Share of the language model's positions that pad a row. Padding packs are computed like any
    other and counted like any other, as in the log's ``padding_share``."""
    filled: float | None
    """Share of the room in packs that is taken; None unless packed."""
    vision: float
    """Slowest over mean in the vision tower, a dummy tile where a micro batch has no image."""
    text: float
    """Slowest over mean in the language model, padding included."""


def expected_imbalance(plan: EpochPlan, cut: StepCut, *, steps: int | None = None) -> Imbalance:
    """The imbalance of the first steps of an epoch.

    Args:
        plan: of the epoch.
        cut: how its steps are cut.
        steps: how many; at most 64 and those of 65,536 packs if None.
    """
    if steps is None:
        steps = min(MOST_STEPS, max(1, MOST_PACKS // plan.global_batch_size))
    steps = min(steps, plan.num_steps)
    works, tokens, filled, positions = [], 0, 0, 0
    for step in range(steps):
        dealt, work = plan.dealt(step, cut)
        lengths = plan.sizes(step, cut.rates).lengths
        works.append(work)
        tokens += int(lengths.sum(dtype=np.int64))
        filled += int(lengths[: plan.num_packs - step * plan.global_batch_size].sum(dtype=np.int64))
        if not cut.packed:
            positions += int(cut.widths(lengths[dealt]).sum(dtype=np.int64)) * cut.micro_batch_size
    packs = min(steps * plan.global_batch_size, plan.num_packs)
    room = packs * (plan.max_packed_tokens or 0)
    return Imbalance(
        steps=steps,
        padding=0.0 if cut.packed else 1 - tokens / positions,
        filled=filled / room if room else None,
        vision=slowest_over_mean([work.vision for work in works]),
        text=slowest_over_mean([work.text for work in works]),
    )


def slowest_over_mean(works: list[np.ndarray]) -> float:
    """Of (A, W) work each: the slowest ranks' sum over the means' sum."""
    slowest = sum(float(work.max(axis=1).sum()) for work in works)
    return slowest / sum(float(work.mean(axis=1).sum()) for work in works)
