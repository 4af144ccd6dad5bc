"""The order of an epoch, decided on lengths and tiles alone.

Pure numpy: a plan is a function of (lengths, tiles, seed, epoch, global batch size, mode). It knows
no rank; ranks take their micro batches out of the same plan, so the samples of a step do not depend
on how many ranks there are, and resuming at any step costs nothing but the plan itself. How a step
is cut into micro batches (``data/balance.py``) is worked out step by step.

Vocabulary: a *pack* is what fills one place of a batch: one sample, or, when packing, several. A
*step* is one optimizer step of ``global_batch_size`` packs over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, get_args

import numpy as np

from internvl_chat.config import ORDER_RULE, OrderMode
from internvl_chat.costs.work import WorkRates
from internvl_chat.data.arrangement import Arrangement
from internvl_chat.data.balance import V1_2_RATES, StepCut
from internvl_chat.data.epoch_plan import EpochPlan, Pack
from internvl_chat.data.former_order import FormerArrangement
from internvl_chat.data.packing import Limits
from internvl_chat.data.per_sample import BLOCK, Values

KEPT_PLANS: Final = 16
KEPT_BYTES: Final = 64 << 20
"""What plans of epochs are kept at most, the newest in any case: nine of 1.2 million samples. A run
that counts the steps of its epochs beforehand makes no plan twice then."""


def plan_epoch(
    lengths: Values,
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    mode: OrderMode = "random",
    max_packed_tokens: int | None = None,
    tiles: Values | None = None,
    max_packed_tiles: int | None = None,
    indices: np.ndarray | None = None,
    window_steps: int | None = None,
    drop_last: bool = False,
    rule: int = ORDER_RULE,
) -> EpochPlan:
    """Decide the order of an epoch.

    Args:
        lengths: (n,) ids per sample; negative ones are bad and never planned.
        seed, epoch: the order's source of randomness.
        global_batch_size: packs per optimizer step, over all ranks and accumulation.
        mode: ``random`` as shuffled; ``grouped`` by length; ``packed``, several samples a pack.
        max_packed_tokens, max_packed_tiles: limits of a pack; only a single sample's tiles exceed.
        tiles: (n,) image tiles per sample; None if none has any.
        indices: the samples of this epoch, repetitions allowed (resampling); None: all good ones.
        window_steps: steps among which is sorted; by default as ``data/arrangement.py`` says.
        drop_last: leave out what does not fill a step, instead of completing it with padding packs.
        rule: which of the rules that there have been; runs go on under the one they began with.

    Raises:
        ValueError: no good sample, or a limit that cannot be kept.
    """
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size is {global_batch_size}, want a number > 0")
    if mode not in get_args(OrderMode):
        raise ValueError(f"mode is {mode!r}, want random, grouped or packed")
    if max_packed_tiles is not None and tiles is None:
        raise ValueError("max_packed_tiles needs the tiles of every sample")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order, offsets = _shuffled(lengths, indices, rng), None
    tiles = np.zeros(len(lengths), dtype=np.int32) if tiles is None else tiles
    arrange = FormerArrangement if rule == 1 else Arrangement
    arrangement = arrange(lengths, tiles, rng, global_batch_size, window_steps)
    if mode == "packed":
        limits = _limits(order, lengths, max_packed_tokens, max_packed_tiles)
        order, offsets = arrangement.packed(order, limits)
    else:
        order = arrangement.grouped(order) if mode == "grouped" else arrangement.random(order)
    num_steps, padding_pack = _end(order, offsets, lengths, global_batch_size, drop_last)
    return EpochPlan(
        samples=order,
        offsets=offsets,
        global_batch_size=global_batch_size,
        num_steps=num_steps,
        padding_pack=padding_pack,
        lengths=lengths,
        tiles=tiles,
        max_packed_tokens=None if offsets is None else max_packed_tokens,
        rule=rule,
    )


def _end(
    order: np.ndarray,
    offsets: np.ndarray | None,
    lengths: Values,
    global_batch_size: int,
    drop_last: bool,
) -> tuple[int, int]:
    """Steps of an epoch, and the pack that completes the last: the shortest of that step's."""
    num_packs = len(order) if offsets is None else len(offsets) - 1
    num_steps, rest = divmod(num_packs, global_batch_size)
    if drop_last and num_steps == 0:
        raise ValueError(f"{num_packs} packs do not fill one step of {global_batch_size}")
    first = num_packs - rest if rest else max(num_packs - global_batch_size, 0)
    if offsets is None:
        sums = lengths[order[first:]]
    else:
        sums = np.add.reduceat(lengths[order[offsets[first] :]], offsets[first:-1] - offsets[first])
    return num_steps + (rest > 0 and not drop_last), first + int(np.argmin(sums))


def _shuffled(lengths: Values, indices: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """The samples of an epoch in random order."""
    dtype = np.int32 if len(lengths) < 2**31 else np.int64
    if indices is None:
        order = np.empty(len(lengths), dtype=dtype)
        count = 0
        for first in range(0, len(lengths), BLOCK):
            good = np.flatnonzero(lengths[first : first + BLOCK] >= 0) + first
            order[count : count + len(good)] = good
            count += len(good)
        order = order[:count]
    else:
        order = np.array(indices, dtype=dtype)
    if len(order) == 0:
        raise ValueError("no sample to plan: all records are bad, or there are none")
    rng.shuffle(order)  # in place; the same as order[rng.permutation(len(order))]
    return order


def _limits(
    order: np.ndarray, lengths: Values, max_packed_tokens: int | None, max_packed_tiles: int | None
) -> Limits:
    """Check the limits of packs."""
    longest = max(
        int(lengths[order[first : first + BLOCK]].max()) for first in range(0, len(order), BLOCK)
    )
    if max_packed_tokens is None or max_packed_tokens < longest:
        raise ValueError(
            f"max_packed_tokens is {max_packed_tokens}, but the longest sample has {longest}"
        )
    return Limits(max_packed_tokens, max_packed_tiles)


class StepBatchSampler:
    """One rank's micro batches of an epoch, as a DataLoader's ``batch_sampler``.

    Args:
        plan: the plan of an epoch, e.g. ``lambda epoch: dataset.plan(epoch, …)``.
        rank, world_size: this rank among all.
        micro_batch_size: packs per rank in one forward pass.
        accumulation: micro batches per step; with the two above it makes the plan's global batch.
        epoch, start_step: where to begin; the whole state of the data order.
        rates: by which steps are cut evenly. They change no step's samples, nor its gradient.
        row_multiple: what the lengths of padded rows are rounded up to.
    """

    def __init__(
        self,
        plan: Callable[[int], EpochPlan],
        *,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        accumulation: int,
        epoch: int = 0,
        start_step: int = 0,
        rates: WorkRates = V1_2_RATES,
        row_multiple: int = 1,
    ) -> None:
        self.rates, self.row_multiple = rates, row_multiple
        self._plan_epoch = plan
        self._plans: dict[int, EpochPlan] = {}
        self.rank, self.world_size = rank, world_size
        self.micro_batch_size, self.accumulation = micro_batch_size, accumulation
        self.epoch, self.start_step = epoch, start_step

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch; those worked out last are kept."""
        if self.epoch not in self._plans:
            plan = self._plan_epoch(self.epoch)
            expected = self.micro_batch_size * self.world_size * self.accumulation
            if plan.global_batch_size != expected:
                raise ValueError(
                    f"the plan's global batch is {plan.global_batch_size} packs, but micro batch "
                    f"x ranks x accumulation = {self.micro_batch_size} x {self.world_size} x "
                    f"{self.accumulation} = {expected}"
                )
            self._plans[self.epoch] = plan
            self._drop_surplus()
        return self._plans[self.epoch]

    def _drop_surplus(self) -> None:
        """Leave the plans that were made last, the newest in any case."""
        held = sum(plan.nbytes for plan in self._plans.values())
        while len(self._plans) > 1 and (len(self._plans) > KEPT_PLANS or held > KEPT_BYTES):
            held -= self._plans.pop(next(iter(self._plans))).nbytes

    @property
    def cut(self) -> StepCut:
        """The micro batches of a step."""
        return self.plan.cut(
            world_size=self.world_size,
            micro_batch_size=self.micro_batch_size,
            rates=self.rates,
            row_multiple=self.row_multiple,
        )

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Move to step ``start_step`` of an epoch; takes effect at the next iteration."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return (self.plan.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Pack]]:
        plan, cut = self.plan, self.cut
        for step in range(self.start_step, plan.num_steps):
            yield from plan.micro_batches(step, cut, rank=self.rank)
