from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.config import OrderMode
from internvl_chat.data import packing
from internvl_chat.data.sampler import EpochPlan, Pack, StepBatchSampler, plan_epoch

MODES: tuple[OrderMode, ...] = ("random", "grouped", "packed")
LENGTHS = np.random.default_rng(0).integers(5, 100, 203).astype(np.int32)


def plan(lengths: np.ndarray = LENGTHS, **changes: object) -> EpochPlan:
    values = {"seed": 1, "epoch": 0, "global_batch_size": 8, "max_packed_tokens": 120, **changes}
    return plan_epoch(lengths, **values)  # type: ignore[arg-type]


def log_normal(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(np.exp(rng.normal(5.2, 0.8, count)), 20, 2048).astype(np.int32)


def padded_share(plan: EpochPlan, lengths: np.ndarray, micro_batch_size: int) -> float:
    usable = len(plan.samples) // micro_batch_size * micro_batch_size
    rows = lengths[plan.samples[:usable]].reshape(-1, micro_batch_size)
    return 1 - rows.sum() / (rows.max(axis=1) * micro_batch_size).sum()


# -- what an epoch holds ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@given(
    lengths=st.lists(st.integers(-1, 60), min_size=1, max_size=80).filter(lambda v: max(v) >= 0),
    global_batch_size=st.sampled_from([1, 4, 8, 12]),
    seed=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_every_good_sample_once(
    mode: OrderMode, lengths: list[int], global_batch_size: int, seed: int
) -> None:
    made = plan(
        np.array(lengths),
        mode=mode,
        global_batch_size=global_batch_size,
        seed=seed,
        max_packed_tokens=70,
    )
    packs = [pack for step in range(made.num_steps) for pack in made.packs(step)]
    assert len(packs) == made.num_steps * global_batch_size
    found = [index for pack in packs if not pack.padding for index in pack.indices]
    assert sorted(found) == [i for i, length in enumerate(lengths) if length >= 0]
    padding_packs = [pack for pack in packs if pack.padding]
    assert len(padding_packs) < global_batch_size
    assert packs[len(packs) - len(padding_packs) :] == padding_packs
    assert made.num_samples() == len(found)
    if mode == "packed":
        assert all(sum(lengths[i] for i in pack.indices) <= 70 for pack in packs)
    else:
        assert all(len(pack.indices) == 1 for pack in packs)


def test_exact_order() -> None:
    """Written out, so that a change of the order is never an accident: it breaks resuming."""
    lengths = np.array([3, 9, -1, 5, 7, 1, 8, 2])
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, 0]))).permutation(7)
    good = np.array([0, 1, 3, 4, 5, 6, 7])
    made = plan(lengths, mode="random", global_batch_size=4)
    assert made.samples.tolist() == good[order].tolist()
    grouped = plan(lengths, mode="grouped", global_batch_size=2)
    first = [pack.indices[0] for pack in grouped.packs(0)]
    assert first == [1, 6]
    assert grouped.num_steps == 4
    assert grouped.packs(3)[1] == Pack(grouped.packs(3)[0].indices, padding=True)


@pytest.mark.parametrize("mode", MODES)
def test_depends_on_seed_and_epoch_only(mode: OrderMode) -> None:
    assert plan(mode=mode).samples.tolist() == plan(mode=mode).samples.tolist()
    assert plan(mode=mode).samples.tolist() != plan(mode=mode, epoch=1).samples.tolist()
    assert plan(mode=mode).samples.tolist() != plan(mode=mode, seed=2).samples.tolist()


def test_drop_last() -> None:
    whole, cut = plan(), plan(drop_last=True)
    assert (whole.num_steps, cut.num_steps) == (26, 25)
    assert not any(pack.padding for step in range(25) for pack in cut.packs(step))
    assert cut.num_samples() == 200
    with pytest.raises(ValueError, match="3 packs do not fill one step of 8"):
        plan(LENGTHS[:3], drop_last=True)


def test_resampled_indices_may_repeat() -> None:
    made = plan(indices=np.array([4, 4, 4, 9]), global_batch_size=2)
    assert sorted(made.samples.tolist()) == [4, 4, 4, 9]


def test_fewer_samples_than_one_batch() -> None:
    made = plan(np.array([5, 3]), mode="grouped", global_batch_size=8)
    packs = made.packs(0)
    assert made.num_steps == 1
    assert sorted(packs[0].indices + packs[1].indices) == [0, 1]
    assert packs[2:] == [Pack((1,), padding=True)] * 6  # the shortest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": np.array([-1, -1])}, "no sample to plan"),
        ({"global_batch_size": 0}, "global_batch_size is 0"),
        ({"mode": "packed", "max_packed_tokens": 98}, "but the longest sample has 99"),
        ({"mode": "packed", "max_packed_tokens": None}, "max_packed_tokens is None"),
        ({"mode": "sorted"}, "mode is 'sorted'"),
    ],
)
def test_what_cannot_be_planned(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


# -- grouping -----------------------------------------------------------------------------------


def test_grouping_pads_little() -> None:
    lengths = log_normal(20_000)
    made = plan(lengths, mode="grouped", global_batch_size=128)
    assert padded_share(made, lengths, 4) < 0.05
    assert padded_share(plan(lengths, mode="random", global_batch_size=128), lengths, 4) > 0.3


def rank_spread(plan: EpochPlan, lengths: np.ndarray) -> np.ndarray:
    """Tokens of the fullest of 16 ranks over those of the emptiest, per micro batch of 4."""
    whole = len(plan.samples) // 64 * 64
    sums = lengths[plan.samples[:whole]].reshape(-1, 16, 4).sum(axis=2)
    return sums.max(axis=1) / sums.min(axis=1)


def test_grouping_balances_the_ranks_of_a_micro_batch() -> None:
    lengths = log_normal(20_000)
    grouped = rank_spread(plan(lengths, mode="grouped", global_batch_size=128), lengths)
    # Measured: 1.05; the few steps at the long end of the distribution spread more (1.5).
    assert np.quantile(grouped, 0.9) < 1.1
    assert grouped.max() < 2
    shuffled = rank_spread(plan(lengths, mode="random", global_batch_size=128), lengths)
    assert np.median(shuffled) > 2


def test_the_heaviest_step_comes_first_and_the_rest_is_shuffled() -> None:
    lengths = log_normal(5_000)
    made = plan(lengths, mode="grouped", global_batch_size=16)
    sums = [
        sum(int(lengths[pack.indices[0]]) for pack in made.packs(step))
        for step in range(made.num_steps - 1)
    ]
    assert sums[0] == max(sums)
    assert lengths[made.packs(0)[0].indices[0]] == lengths.max()
    ups = sum(a < b for a, b in itertools.pairwise(sums[1:]))
    assert 0.4 < ups / len(sums) < 0.6


def test_a_window_limits_how_far_samples_travel() -> None:
    lengths = log_normal(4_096)
    order = np.arange(len(lengths), dtype=np.int32)
    np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, 0]))).shuffle(order)
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    made = plan(lengths, mode="grouped", global_batch_size=8, window_steps=4)
    for step in range(1, made.num_steps):
        places = [place[pack.indices[0]] for pack in made.packs(step)]
        assert max(places) - min(places) <= 4 * 8 + 8  # the longest eight went ahead


# -- packing ------------------------------------------------------------------------------------


def test_packs_waste_little() -> None:
    lengths = log_normal(20_000)
    made = plan(lengths, mode="packed", max_packed_tokens=4096)
    sums = np.add.reduceat(lengths[made.samples], made.offsets[:-1])
    assert sums.max() <= 4096
    assert 1 - sums.sum() / (4096 * len(sums)) < 0.005


def test_a_limit_on_tiles() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 7, len(LENGTHS))
    made = plan(mode="packed", max_packed_tokens=400, tiles=tiles, max_packed_tiles=10)
    sums = np.add.reduceat(tiles[made.samples], made.offsets[:-1])
    assert sums.max() <= 10
    assert sorted(made.samples.tolist()) == list(range(len(LENGTHS)))
    alone = plan(
        np.array([5, 5]),
        mode="packed",
        tiles=np.array([9, 1]),
        max_packed_tiles=4,
        global_batch_size=1,
    )
    assert sorted(alone.pack(n).indices for n in range(2)) == [(0,), (1,)]
    with pytest.raises(ValueError, match="needs the tiles"):
        plan(mode="packed", max_packed_tiles=4)


@pytest.mark.parametrize("tiles_limit", [None, 7, 40, 500])
@pytest.mark.parametrize("heavy", [False, True])
def test_many_windows_are_packed_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tiles_limit: int | None, heavy: bool
) -> None:
    """A resumed run relies on it, whichever of both packed before."""
    monkeypatch.setattr(packing, "PACK_WINDOW_SAMPLES", 50)
    rng = np.random.default_rng(0)
    lengths = log_normal(1_980) if heavy else rng.integers(0, 9, 1_980).astype(np.int32)
    tiles = rng.integers(0, 7, len(lengths)) * rng.integers(0, 2, len(lengths))
    tiles[::97] = 50
    limits = packing.Limits(2_048 if heavy else 8, tiles_limit)
    shuffled = rng.permutation(len(lengths)).astype(np.int32)
    found = []
    for many in (1, 10**9):
        monkeypatch.setattr(packing, "_MANY_WINDOWS", many)
        order = shuffled.copy()
        sizes = packing.pack_in_windows(order, lengths, tiles, limits)
        found.append((order.tolist(), sizes.tolist()))
    assert found[0] == found[1]


def test_a_shuffle_in_place_is_the_permutation_that_old_checkpoints_know() -> None:
    values = np.arange(50, dtype=np.int32) * 3
    shuffled = values.copy()
    np.random.default_rng(4).shuffle(shuffled)
    assert shuffled.tolist() == values[np.random.default_rng(4).permutation(50)].tolist()


# -- ranks and resuming -------------------------------------------------------------------------


def epoch_of(
    mode: OrderMode, world_size: int, micro_batch_size: int, *, epoch: int = 0, start_step: int = 0
) -> list[list[Pack]]:
    """Packs of each step as the ranks together get them, in the order of their first samples."""
    accumulation = 8 // (world_size * micro_batch_size)
    ranks = [
        list(
            StepBatchSampler(
                lambda epoch: plan(mode=mode, epoch=epoch),
                rank=rank,
                world_size=world_size,
                micro_batch_size=micro_batch_size,
                accumulation=accumulation,
                epoch=epoch,
                start_step=start_step,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    joined = [pack for batches in zip(*ranks, strict=True) for batch in batches for pack in batch]
    return [
        sorted(joined[first : first + 8], key=lambda pack: (pack.padding, pack.indices))
        for first in range(0, len(joined), 8)
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 8), (2, 1), (2, 4), (4, 2)])
def test_steps_do_not_depend_on_ranks_or_micro_batches(
    mode: OrderMode, world_size: int, micro_batch_size: int
) -> None:
    assert epoch_of(mode, world_size, micro_batch_size) == epoch_of(mode, 1, 1)


@pytest.mark.parametrize("mode", MODES)
def test_resuming_continues(mode: OrderMode) -> None:
    whole = epoch_of(mode, 2, 2, epoch=3)
    assert epoch_of(mode, 4, 1, epoch=3, start_step=5) == whole[5:]


def test_the_sampler_moves_through_epochs() -> None:
    sampler = StepBatchSampler(
        lambda epoch: plan(epoch=epoch),
        rank=0,
        world_size=2,
        micro_batch_size=2,
        accumulation=2,
    )
    assert (len(sampler), len(list(sampler))) == (52, 52)
    sampler.set_epoch(1, start_step=20)
    assert (len(sampler), len(list(sampler))) == (12, 12)
    assert sampler.plan.samples.tolist() == plan(epoch=1).samples.tolist()
    sampler.set_epoch(2)
    assert len(sampler) == 52


def test_a_batch_arithmetic_that_does_not_fit_the_plan() -> None:
    sampler = StepBatchSampler(
        lambda epoch: plan(), rank=0, world_size=2, micro_batch_size=3, accumulation=2
    )
    with pytest.raises(ValueError, match="3 x 2 x 2 = 12"):
        len(sampler)
