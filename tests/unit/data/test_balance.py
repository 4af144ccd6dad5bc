"""Steps that no rank waits in: what is put together, how it is cut, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.config import OrderMode
from internvl_chat.costs.work import WorkRates
from internvl_chat.data import even_packs
from internvl_chat.data.balance import StepCut, deal, even_steps, memory_weight, micro_work
from internvl_chat.data.epoch_plan import EpochPlan
from internvl_chat.data.even_packs import pack_evenly
from internvl_chat.data.imbalance import expected_imbalance
from internvl_chat.data.packing import Limits
from internvl_chat.data.sampler import plan_epoch

MODES: tuple[OrderMode, ...] = ("random", "grouped", "packed")
RATES = WorkRates(per_token=1.0, per_pair=0.0, per_tile=100.0)


def records(count: int, most_tiles: int, *, text_share: float = 0.05) -> tuple[np.ndarray, ...]:
    """Tokens and tiles: log-normal text, 256 tokens a tile, some records without images."""
    rng = np.random.default_rng(0)
    is_text = rng.random(count) < text_share
    tiles = np.where(is_text, 0, rng.integers(1, most_tiles + 1, count)).astype(np.int32)
    text = np.exp(rng.normal(np.where(is_text, 6.5, 5.5), 0.7, count))
    return np.minimum(40 + text + 256 * tiles, 4096).astype(np.int32), tiles


def plan(lengths: np.ndarray, tiles: np.ndarray, mode: OrderMode, **changes: object) -> EpochPlan:
    values = {"seed": 1, "epoch": 0, "global_batch_size": 64, "max_packed_tokens": 8192, **changes}
    return plan_epoch(lengths, tiles=tiles, mode=mode, **values)  # type: ignore[arg-type]


def samples_by_step(made: EpochPlan, **cut: int) -> list[list[tuple[int, ...]]]:
    """Of each step, the packs that all ranks together get."""
    own = made.cut(**cut)
    return [
        sorted(
            pack.indices
            for rank in range(own.world_size)
            for batch in made.micro_batches(step, own, rank=rank)
            for pack in batch
        )
        for step in range(made.num_steps)
    ]


# -- how evenly ---------------------------------------------------------------------------------


@pytest.mark.parametrize("most_tiles", [1, 12])
@pytest.mark.parametrize(
    ("mode", "global_batch_size", "micro_batch_size"),
    [("grouped", 128, 8), ("grouped", 128, 2), ("packed", 16, 1), ("packed", 64, 1)],
)
def test_no_rank_of_sixteen_waits_for_long(
    most_tiles: int, mode: OrderMode, global_batch_size: int, micro_batch_size: int
) -> None:
    lengths, tiles = records(32_768, most_tiles)
    made = plan(lengths, tiles, mode, global_batch_size=global_batch_size)
    cut = made.cut(world_size=16, micro_batch_size=micro_batch_size)
    found = expected_imbalance(made, cut, steps=made.num_steps)
    assert found.steps == made.num_steps
    assert found.vision <= 1.05
    assert found.text <= 1.05
    if mode == "packed":
        assert found.filled is not None
        assert found.filled >= 0.99
    else:
        assert found.padding <= 0.01
    before = plan(lengths, tiles, mode, global_batch_size=global_batch_size, rule=1)
    assert expected_imbalance(before, cut, steps=before.num_steps).vision >= found.vision


def test_packs_hold_about_as_many_tiles() -> None:
    lengths, tiles = records(16_384, 1)
    spread = {}
    for rule in (1, 2):
        made = plan(lengths, tiles, "packed", max_packed_tokens=4096, rule=rule)
        assert made.offsets is not None
        held = np.add.reduceat(tiles[made.samples], made.offsets[:-1])
        spread[rule] = held.std()
    assert spread[2] < 0.5 * spread[1]


def test_dealing_a_micro_step_by_hand() -> None:
    cut = StepCut(accumulation=1, world_size=2, micro_batch_size=2, packed=False, rates=RATES)
    lengths, tiles = np.array([100, 100, 100, 100]), np.array([2, 1, 0, 1])
    dealt = deal(lengths, tiles, cut)
    assert tiles[dealt].sum(axis=2).tolist() == [[2, 2]]
    # Rows of other lengths stay apart, unless that makes the vision tower wait for longer.
    lengths, tiles = np.array([100, 10, 100, 10]), np.array([0, 1, 0, 1])
    apart = StepCut(
        accumulation=1,
        world_size=2,
        micro_batch_size=2,
        packed=False,
        rates=WorkRates(per_token=1.0, per_pair=0.0, per_tile=1.0),
    )
    assert lengths[deal(lengths, tiles, apart)].tolist() == [[[100, 100], [10, 10]]]
    assert tiles[deal(lengths, tiles, cut)].sum(axis=2).tolist() == [[1, 1]]


def test_micro_steps_are_cut_by_what_takes_time() -> None:
    lengths, tiles = np.array([8, 9, 8, 9]), np.array([0, 5, 5, 0])
    cut = StepCut(accumulation=2, world_size=2, micro_batch_size=1, packed=True, rates=RATES)
    dealt = deal(lengths, tiles, cut)
    assert tiles[dealt][:, :, 0].tolist() == [[5, 5], [0, 0]]
    work = micro_work(dealt, lengths, tiles, RATES.text(lengths), cut)
    assert work.vision.tolist() == [[500, 500], [100, 100]]  # without any tile, a dummy one
    assert sorted(work.text.ravel().tolist()) == [8, 8, 9, 9]


# -- what a step holds --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_samples_of_a_step_do_not_depend_on_how_it_is_cut(mode: OrderMode) -> None:
    lengths, tiles = records(2_000, 6)
    made = plan(lengths, tiles, mode)
    expected = samples_by_step(made, world_size=1, micro_batch_size=1)
    for world_size, micro_batch_size in ((1, 64), (2, 8), (8, 8), (16, 1), (64, 1)):
        cut = {"world_size": world_size, "micro_batch_size": micro_batch_size}
        assert samples_by_step(made, **cut) == expected
    other = made.cut(world_size=8, micro_batch_size=2, rates=RATES)
    found = [
        pack.indices
        for rank in range(8)
        for b in made.micro_batches(0, other, rank=rank)
        for pack in b
    ]
    assert sorted(found) == expected[0]


@pytest.mark.parametrize("mode", MODES)
@given(
    kinds=st.lists(st.tuples(st.integers(-1, 60), st.integers(0, 9)), min_size=1, max_size=150),
    global_batch_size=st.sampled_from([1, 4, 8]),
    ranks=st.sampled_from([1, 2, 4]),
    most_tiles=st.sampled_from([None, 12]),
)
@settings(max_examples=40, deadline=None)
def test_every_good_sample_once(
    mode: OrderMode,
    kinds: list[tuple[int, int]],
    global_batch_size: int,
    ranks: int,
    most_tiles: int | None,
) -> None:
    lengths = np.array([kind[0] for kind in kinds], dtype=np.int32)
    tiles = np.array([kind[1] for kind in kinds], dtype=np.int32)
    if (lengths < 0).all() or global_batch_size % ranks:
        return
    made = plan(
        lengths,
        tiles,
        mode,
        global_batch_size=global_batch_size,
        max_packed_tokens=90,
        max_packed_tiles=most_tiles,
    )
    packs = [pack for step in range(made.num_steps) for pack in made.packs(step)]
    found = sorted(index for pack in packs if not pack.padding for index in pack.indices)
    assert found == np.flatnonzero(lengths >= 0).tolist()
    cut = made.cut(world_size=ranks, micro_batch_size=global_batch_size // ranks)
    for step in range(made.num_steps):
        dealt, _ = made.dealt(step, cut)
        assert sorted(dealt.ravel().tolist()) == list(range(global_batch_size))
    if mode == "packed":
        for pack in packs:
            assert sum(lengths[list(pack.indices)]) <= 90
            assert len(pack.indices) == 1 or sum(tiles[list(pack.indices)]) <= (most_tiles or 1e9)


@pytest.mark.parametrize("limit", [None, 40, 30])
def test_dealt_packs_keep_their_limits(limit: int | None) -> None:
    """40 tiles leave room, so that packs are dealt; 30 bind, and best fit takes over."""
    lengths, tiles = records(5_000, 4)
    order = np.arange(len(lengths), dtype=np.int32)
    sizes = pack_evenly(order, lengths, tiles, Limits(8192, limit))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    begins = np.cumsum(sizes) - sizes
    assert np.add.reduceat(lengths[order], begins).max() <= 8192
    if limit is not None:
        assert np.add.reduceat(tiles[order], begins).max() <= limit


def test_what_overfills_a_dealt_pack_gets_one_of_its_own() -> None:
    lengths, tiles = np.array([70, 40, 30, 20, 10]), np.array([1, 0, 0, 1, 0])
    settled = even_packs._within_limits(
        np.array([0, 0, 1, 1, 1] + [2] * 0), lengths, tiles, Limits(100), 60
    )
    assert settled is not None
    assert settled.tolist() == [0, 60, 1, 1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_the_first_step_takes_most_memory(mode: OrderMode) -> None:
    lengths, tiles = records(6_000, 6)
    made = plan(lengths, tiles, mode)
    if made.offsets is None:
        weights = memory_weight(lengths, tiles)[made.samples]
    else:
        sums = [np.add.reduceat(v[made.samples], made.offsets[:-1]) for v in (lengths, tiles)]
        weights = memory_weight(*sums)
    whole = len(weights) // 64 * 64  # what does not fill a step comes last
    assert weights[:64].max() == weights[:whole].max()
    if mode != "random":
        assert weights[:64].min() >= np.sort(weights[64:whole])[-1]


@pytest.mark.parametrize("mode", ["grouped", "packed"])
@pytest.mark.parametrize("text_tokens", [20, 300, 4000])
def test_no_step_is_text_only_where_images_can_be_shared(mode: OrderMode, text_tokens: int) -> None:
    lengths, tiles = records(8_000, 1, text_share=0)
    tiles[::3] = 0
    lengths[::3] = text_tokens + np.arange(len(lengths[::3])) % 40
    made = plan(lengths, tiles, mode, max_packed_tokens=4096)
    for step in range(made.num_steps - 1):
        assert made.sizes(step, RATES).tiles.any(), step


def test_a_step_with_a_few_images_shares_them() -> None:
    lengths, tiles = np.full(64, 50, dtype=np.int32), np.zeros(64, dtype=np.int32)
    lengths[:16] = 4000 - np.arange(16)
    tiles[0] = 1  # of the first step, which is chosen by memory
    tiles[16:19] = 1
    made = even_steps(lengths, tiles, np.random.default_rng(0), global_batch_size=8, window_steps=8)
    assert (tiles[made].reshape(8, 8).sum(axis=1) > 0).sum() == 1 + 3


def test_the_first_step_has_images_if_there_are_any() -> None:
    lengths = np.array([900] * 8 + [100] * 8, dtype=np.int32)
    tiles = np.array([0] * 8 + [1] * 8, dtype=np.int32)
    made = even_steps(lengths, tiles, np.random.default_rng(0), global_batch_size=4, window_steps=8)
    assert tiles[made[:4]].tolist() == [0, 1, 0, 1]
    assert lengths[made[:4]].max() == 900


# -- data of one kind, and little of it -----------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "kind", ["text", "one tile", "one length", "a giant", "few", "one", "many tiles"]
)
def test_data_of_one_kind(mode: OrderMode, kind: str) -> None:
    lengths, tiles = records(700, 3)
    if kind == "text":
        tiles[:] = 0
    elif kind == "one tile":
        tiles[:] = 1
    elif kind == "one length":
        lengths[:] = 512
    elif kind == "a giant":
        lengths[5], tiles[5] = 8192, 40
    elif kind == "many tiles":
        tiles[5] = 2_000_000
    else:
        lengths, tiles = lengths[: 5 if kind == "few" else 1], tiles[: 5 if kind == "few" else 1]
    made = plan(lengths, tiles, mode, global_batch_size=32)
    for micro_batch_size, world_size in ((1, 4), (8, 4), (32, 1)):
        cut = {"world_size": world_size, "micro_batch_size": micro_batch_size}
        found = {index for step in samples_by_step(made, **cut) for pack in step for index in pack}
        assert found == set(range(len(lengths)))
        expected = expected_imbalance(made, made.cut(**cut))
        assert expected.vision >= 1
        assert expected.text >= 1
        if kind == "text":
            assert expected.vision == 1  # a dummy tile on every rank


def test_few_steps_are_looked_at_before_a_run() -> None:
    lengths, tiles = records(30_000, 1)
    made = plan(lengths, tiles, "grouped", global_batch_size=16)
    assert expected_imbalance(made, made.cut(world_size=2, micro_batch_size=4)).steps == 64
    with pytest.raises(
        ValueError, match="16 packs a step are no whole number of micro batches of 3"
    ):
        made.cut(world_size=2, micro_batch_size=3)


@pytest.mark.parametrize("row_multiple", [1, 64, 500])
@pytest.mark.parametrize("mode", ["random", "grouped"])
def test_padding_is_foretold_as_the_log_counts_it(mode: OrderMode, row_multiple: int) -> None:
    """Rounded rows, and those that complete the last step, as in ``count_step``."""
    lengths, tiles = records(41, 3)
    made = plan(lengths, tiles, mode, global_batch_size=16)
    cut = made.cut(world_size=2, micro_batch_size=4, row_multiple=row_multiple)
    computed = tokens = 0
    for step in range(made.num_steps):
        for rank in range(2):
            for packs in made.micro_batches(step, cut, rank=rank):
                rows = [int(lengths[pack.indices[0]]) for pack in packs]
                tokens += sum(rows)
                computed += len(rows) * -(-max(rows) // row_multiple) * row_multiple
    assert made.num_packs % 16  # padding packs in the last step
    assert expected_imbalance(made, cut).padding == pytest.approx(1 - tokens / computed)


def test_packs_that_complete_a_step_fill_no_room() -> None:
    lengths, tiles = np.full(3, 100, dtype=np.int32), np.zeros(3, dtype=np.int32)
    made = plan(lengths, tiles, "packed", global_batch_size=8, max_packed_tokens=100)
    found = expected_imbalance(made, made.cut(world_size=2, micro_batch_size=1))
    assert (found.padding, found.filled) == (0.0, 1.0)


def test_steps_are_shuffled_and_nothing_gets_lost() -> None:
    lengths, tiles = records(1_000, 4)
    size = {"global_batch_size": 16, "window_steps": 8}
    made = even_steps(lengths, tiles, np.random.default_rng(3), **size)
    assert sorted(made.tolist()) == list(range(1_000))
    assert made.tolist() == even_steps(lengths, tiles, np.random.default_rng(3), **size).tolist()
    assert made.tolist() != even_steps(lengths, tiles, np.random.default_rng(4), **size).tolist()
    assert even_steps(lengths[:3], tiles[:3], np.random.default_rng(3), **size).tolist() == sorted(
        range(3), key=lambda place: -lengths[place]
    )
