"""Positions in a run, and starting late without working out what came before."""

from __future__ import annotations

import numpy as np
import pytest

from internvl_chat.data.imbalance import Imbalance
from internvl_chat.data.sampler import EpochPlan, StepBatchSampler, plan_epoch
from internvl_chat.train.order import ResumableOrder, RunLength, RunTotal
from internvl_chat.train.reports import balance_line, run_line


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
    assert length.total(num_epochs=3, max_steps=-1) == (10, 3, True)
    assert length.total(num_epochs=1.5, max_steps=-1) == (5, 2, True)
    assert length.total(num_epochs=0.5, max_steps=-1) == (2, 1, True)
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
    assert length.total(num_epochs=1000, max_steps=-1) == (3000, 1000, True)
    assert length.total(num_epochs=1, max_steps=7) == (7, 3, True)
    assert length.locate(7) == (2, 1)


class CountedPlans:
    """The epochs that were planned, in order."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __call__(self, epoch: int) -> EpochPlan:
        self.epochs.append(epoch)
        return packed_plan(epoch)


def test_given_steps_need_the_first_epoch_alone() -> None:
    """However many; the epochs are an estimate until they are planned."""
    plans = CountedPlans()
    length = RunLength(sampler(plans), constant=False)
    assert length.total(num_epochs=1, max_steps=3) == (3, 1, True)
    assert length.total(num_epochs=1, max_steps=1_000_000) == (1_000_000, 333_334, False)
    assert length.total(num_epochs=1, max_steps=9) == (9, 3, False)
    assert plans.epochs == [0]
    assert length.steps(1) == 4
    assert length.total(num_epochs=1, max_steps=7) == (7, 2, True)
    assert length.total(num_epochs=1, max_steps=9) == (9, 3, False)
    length.steps(2)
    assert length.total(num_epochs=1, max_steps=9) == (9, 3, True)
    assert length.total(num_epochs=1, max_steps=1_000_000) == (1_000_000, 333_333, False)


def test_far_into_a_run_its_own_epoch_is_planned_alone() -> None:
    """What the checkpoint tells of it is what counting from the first would find."""
    counted = RunLength(sampler(packed_plan), constant=False)
    for done in (3_497, 3_500, 3_502):
        epoch, step = counted.locate(done)
        plans = CountedPlans()
        length = RunLength(sampler(plans), constant=False, known_begin=(epoch, done - step))
        assert length.locate(done) == (epoch, step)
        assert plans.epochs == [epoch] * (step > 0)
        assert length.locate(done + 9) == counted.locate(done + 9)
        assert set(plans.epochs) <= {epoch, epoch + 1, epoch + 2, epoch + 3}
        total = length.total(num_epochs=1, max_steps=done + 1)
        assert total == (done + 1, epoch + 1, step > 0 or epoch in plans.epochs)
        assert length.locate(10) == (3, 0)  # behind it, too


def test_counted_epochs_win_over_what_a_checkpoint_of_other_packs_tells() -> None:
    """Its run had epochs of two steps; else the loop over epochs would end before the steps."""
    counted = RunLength(sampler(packed_plan), constant=False)
    told = RunLength(sampler(packed_plan), constant=False, known_begin=(2, 5))
    for length in (counted, told):
        assert length.total(num_epochs=3, max_steps=-1) == (10, 3, True)
    assert [told.locate(step) for step in range(11)] == [counted.locate(step) for step in range(11)]


@pytest.mark.parametrize("begin", [(1, 2), (1, 4), (2, 3), (3, 4)])
def test_what_cannot_be_told_of_these_packs_is_passed_over(begin: tuple[int, int]) -> None:
    """The first epoch has three steps, and each one at least."""
    counted = RunLength(sampler(packed_plan), constant=False)
    told = RunLength(sampler(packed_plan), constant=False, known_begin=begin)
    assert told.total(num_epochs=1, max_steps=9) == (9, 3, False)
    assert [told.locate(step) for step in range(20)] == [counted.locate(step) for step in range(20)]


def test_no_epoch_is_planned_twice() -> None:
    plans = CountedPlans()
    own = sampler(plans)
    length = RunLength(own, constant=False)
    length.total(num_epochs=2.5, max_steps=-1)
    for epoch in range(3):
        own.set_epoch(epoch)
        assert len(list(own)) == 2 * length.steps(epoch)
    assert sorted(plans.epochs) == [0, 1, 2]


def test_large_plans_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = CountedPlans()
    own = sampler(plans)
    monkeypatch.setattr("internvl_chat.data.sampler.KEPT_BYTES", 1)
    for epoch in (0, 1, 1, 0):
        own.set_epoch(epoch)
        len(own)
    monkeypatch.setattr("internvl_chat.data.sampler.KEPT_BYTES", packed_plan(1).nbytes * 2)
    for epoch in (1, 0, 1):
        own.set_epoch(epoch)
        assert own.plan.samples.tolist() == packed_plan(epoch).samples.tolist()
    assert plans.epochs == [0, 1, 0, 1]
    monkeypatch.setattr("internvl_chat.data.sampler.KEPT_PLANS", 1)
    own.set_epoch(2)
    len(own)
    own.set_epoch(1)
    len(own)
    assert plans.epochs == [0, 1, 0, 1, 2, 1]


def test_a_run_says_how_long_it_is() -> None:
    assert run_line(RunTotal(10, 3), done=0) == "run: 10 steps in 3 epochs"
    assert run_line(RunTotal(9000, 1200, is_exact=False), done=5000) == (
        "run: 9,000 steps in about 1,200 epochs, 5,000 of them done"
    )


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
