"""The data order of a run as transformers' Trainer wants to see it: epochs of known length.

Packing gives epochs of slightly different numbers of steps, so the steps of a run are counted
epoch by epoch, and a position in the run is (epoch, step) by that count.
A run that goes on knows from its checkpoint where its epoch began, so that no earlier one is
planned again.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

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


class RunTotal(NamedTuple):
    """How long a run is."""

    steps: int
    """Optimizer steps."""
    epochs: int
    """Begun ones."""
    is_exact: bool = True
    """Whether the epochs are counted; else they are what the first one's steps lead to expect."""


class RunLength:
    """Steps of every epoch of a run, worked out as far as needed: each asks for its plan."""

    def __init__(
        self,
        sampler: StepBatchSampler,
        *,
        constant: bool,
        known_begin: tuple[int, int] | None = None,
    ) -> None:
        """Plan nothing yet.

        Args:
            sampler: whose plans are counted; it stays where it is.
            constant: every epoch has as many steps as the first (all but packed ones).
            known_begin: (an epoch, steps before it), as a checkpoint tells. What is counted wins
                over it: a run under --overwrite_output_dir may have other packs than the one that
                wrote the checkpoint.
        """
        self._sampler = sampler
        self._constant = constant
        self._steps: dict[int, int] = {}
        # Epochs whose beginning is known, and the steps before each; both ascending.
        self._epochs, self._begins = [0], [0]
        if known_begin is not None and known_begin[1] > 0:
            self._epochs.append(known_begin[0])
            self._begins.append(known_begin[1])

    def steps(self, epoch: int) -> int:
        """Optimizer steps of an epoch, at least one."""
        key = 0 if self._constant else epoch
        if key not in self._steps:
            before = self._sampler.epoch, self._sampler.start_step
            self._sampler.set_epoch(key)
            self._steps[key] = self._sampler.plan.num_steps
            self._sampler.set_epoch(*before)
            self._note_next(key)
        return self._steps[key]

    def _note_next(self, epoch: int) -> None:
        """Where the next epoch begins, if it is known where this one does."""
        place = bisect.bisect_left(self._epochs, epoch)
        if self._epochs[place : place + 1] != [epoch]:
            return
        begin = self._begins[place] + self._steps[epoch]
        if len(self._epochs) > place + 1:
            between = self._epochs[place + 1] - (epoch + 1)
            their_steps = self._begins[place + 1] - begin
            if between == their_steps == 0:
                return
            if not 0 < between <= their_steps:  # an epoch has one step at least
                del self._epochs[place + 1 :], self._begins[place + 1 :]
        self._epochs.insert(place + 1, epoch + 1)
        self._begins.insert(place + 1, begin)

    def total(self, *, num_epochs: float, max_steps: int) -> RunTotal:
        """How long a run is; ``max_steps`` > 0 wins over ``num_epochs``.

        Whole epochs are planned, all of them, to know the steps. For ``max_steps`` it is the first
        one alone, however many there will be.
        """
        if max_steps > 0:
            return self._total_of_steps(max_steps)
        whole = int(num_epochs)
        rest = num_epochs - whole
        steps = math.ceil(rest * self.steps(whole)) if rest else 0
        # Backwards: the plans that the sampler keeps are then those of the first epochs.
        counts = [self.steps(epoch) for epoch in reversed(range(whole))][::-1]
        steps += sum(counts)
        if not self._constant:  # the loop over epochs ends by their number: none may be passed over
            self._epochs = list(range(whole + 1))
            self._begins = list(itertools.accumulate(counts, initial=0))
        return RunTotal(steps, math.ceil(num_epochs))

    def _total_of_steps(self, max_steps: int) -> RunTotal:
        first = self.steps(0)
        if self._constant:
            return RunTotal(max_steps, math.ceil(max_steps / first))
        epoch, rest = self._last_begun(max_steps - 1)
        if epoch in self._steps:
            return RunTotal(max_steps, epoch + 1)
        return RunTotal(max_steps, epoch + rest // first + 1, is_exact=False)

    def _last_begun(self, step: int) -> tuple[int, int]:
        """Of the epochs whose beginning is known, the last that ``step`` steps reach, and the steps
        after its beginning; it is the step's own if the epoch is planned."""
        place = bisect.bisect_right(self._begins, step) - 1
        return self._epochs[place], step - self._begins[place]

    def locate(self, global_step: int) -> tuple[int, int]:
        """(epoch, step in it) of the step that follows ``global_step`` finished ones."""
        if self._constant:
            return divmod(global_step, self.steps(0))
        epoch, rest = self._last_begun(global_step)
        while rest and rest >= self.steps(epoch):  # at its beginning an epoch needs no plan
            rest -= self.steps(epoch)
            epoch += 1
        return epoch, rest
