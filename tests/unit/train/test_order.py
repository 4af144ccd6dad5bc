"""Positions in a run, and starting late without working out what came before."""

from __future__ import annotations

import numpy as np

from internvl_chat.data.imbalance import Imbalance
from internvl_chat.data.sampler import EpochPlan, StepBatchSampler, plan_epoch
from internvl_chat.train.order import ResumableOrder, RunLength
from internvl_chat.train.reports import balance_line


def sampler(plan: object = None, **options: int) -> StepBatchSampler:
    lengths = np.arange(1, 22)

    def default(epoch: int) -> EpochPlan:
        return plan_epoch(lengths, seed=3, epoch=epoch, global_batch_size=8)

    values = {"rank": 0, "world_size": 2, "micro_batch_size": 2, "accumulation": 2, **options}
    return StepBatchSampler(plan or default, **values)  # type: ignore[arg-type]


def test_dropping_what_was_consumed_leaves_the_rest() -> None:
    whole = ResumableOrder(sampler())
    whole.set_epoch(1)
    everything = list(whole)
    late = ResumableOrder(sampler())
    late.resume_at(2)
    late.set_epoch(1)
    passed = list(late)
    assert len(late) == len(everything) == 6  # 21 samples, 3 steps of 8, 2 micro batches each
    assert passed[:4] == [None] * 4
    assert passed[4:] == everything[4:]
    late.set_epoch(1)
    assert list(late) == everything  # the late start holds once


def packed_plan(epoch: int) -> EpochPlan:
    """Epochs of 3, 4, 3, 4, ... steps."""
    count = 8 * (3 + epoch % 2)
    return plan_epoch(np.ones(count, dtype=int), seed=0, epoch=epoch, global_batch_size=8)


def test_epochs_of_different_length() -> None:
    length = RunLength(sampler(packed_plan), constant=False)
    assert length.total(num_epochs=3, max_steps=-1) == (10, 3)
    assert length.total(num_epochs=1.5, max_steps=-1) == (5, 2)
    assert length.total(num_epochs=1, max_steps=8) == (8, 3)
    assert [length.locate(step) for step in (0, 2, 3, 6, 7, 10)] == [
        (0, 0),
        (0, 2),
        (1, 0),
        (1, 3),
        (2, 0),
        (3, 0),
    ]


def test_epochs_of_one_length() -> None:
    length = RunLength(sampler(), constant=True)
    assert length.total(num_epochs=1000, max_steps=-1) == (3000, 1000)
    assert length.locate(7) == (2, 1)


def test_looking_ahead_leaves_the_sampler_where_it_was() -> None:
    own = sampler(packed_plan)
    own.set_epoch(1, 2)
    RunLength(own, constant=False).total(num_epochs=3, max_steps=-1)
    assert (own.epoch, own.start_step) == (1, 2)


def test_a_run_says_how_even_its_ranks_will_be() -> None:
    padded = Imbalance(steps=64, padding=0.0046, filled=None, vision=1.02, text=1.013)
    assert balance_line(padded, num_ranks=64) == (
        "balance of the first 64 steps: padding 0.5%, slowest rank over mean 1.02 in the vision "
        "tower and 1.01 in the language model"
    )
    packed = Imbalance(steps=1, padding=0, filled=0.9964, vision=1, text=1)
    assert balance_line(packed, num_ranks=1) == "balance of the first step: packs 99.6% full"
