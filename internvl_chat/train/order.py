"""The data order of a run as transformers' Trainer wants to see it: epochs of known length.

Packing gives epochs of slightly different numbers of steps, so the steps of a run are counted
epoch by epoch, and a position in the run is (epoch, step) by that count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler

from internvl_chat.data.sampler import Pack, StepBatchSampler


class ResumableOrder(Sampler[list[Pack]]):
    """A :class:`StepBatchSampler` whose first steps are passed over without being worked out.

    transformers skips consumed batches by drawing and dropping them; after :meth:`resume_at` the
    dropped ones are None, which is cheap, so that a late start costs nothing.
    """

    def __init__(self, sampler: StepBatchSampler) -> None:
        self._sampler = sampler
        self._skipped_steps = 0

    def resume_at(self, step: int) -> None:
        """In the next iteration only: the steps before ``step`` will be dropped by the caller."""
        self._skipped_steps = step

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self._sampler.set_epoch(epoch, self._skipped_steps)

    def __len__(self) -> int:
        return self._sampler.plan.num_steps * self._sampler.accumulation

    def __iter__(self) -> Iterator[Any]:
        skipped, self._skipped_steps = self._skipped_steps, 0
        yield from itertools.repeat(None, skipped * self._sampler.accumulation)
        yield from self._sampler


class EpochLoader(DataLoader):
    """DataLoader over a :class:`ResumableOrder` that can be told the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class RunLength:
    """Steps of every epoch of a run, worked out as far as needed."""

    def __init__(self, sampler: StepBatchSampler, *, constant: bool) -> None:
        """``constant``: every epoch has as many steps as the first (all but packed ones)."""
        self._sampler = sampler
        self._constant = constant
        self._steps: dict[int, int] = {}

    def steps(self, epoch: int) -> int:
        """Optimizer steps of an epoch."""
        key = 0 if self._constant else epoch
        if key not in self._steps:
            before = self._sampler.epoch, self._sampler.start_step
            self._sampler.set_epoch(key)
            self._steps[key] = self._sampler.plan.num_steps
            self._sampler.set_epoch(*before)
        return self._steps[key]

    def total(self, *, num_epochs: float, max_steps: int) -> tuple[int, int]:
        """Steps and (started) epochs of a run; ``max_steps`` > 0 wins over ``num_epochs``."""
        if max_steps > 0:
            return max_steps, self.locate(max_steps - 1)[0] + 1
        whole = int(num_epochs)
        # Backwards: the plan that the sampler keeps is then that of the first epoch.
        steps = sum(self.steps(epoch) for epoch in reversed(range(whole)))
        if num_epochs > whole:
            steps += math.ceil((num_epochs - whole) * self.steps(whole))
        return steps, math.ceil(num_epochs)

    def locate(self, global_step: int) -> tuple[int, int]:
        """(epoch, step in it) of the step that follows ``global_step`` finished ones."""
        epoch, rest = 0, global_step
        if self._constant:
            return divmod(global_step, self.steps(0))
        while rest >= self.steps(epoch):
            rest -= self.steps(epoch)
            epoch += 1
        return epoch, rest
