"""The plan of an epoch: which samples have which place of which step, and how steps are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from internvl_chat.costs.work import WorkRates
from internvl_chat.data.balance import V1_2_RATES, MicroWork, StepCut, deal, micro_work
from internvl_chat.data.per_sample import BLOCK, Values


@dataclass(frozen=True, slots=True)
class Pack:
    """Samples that share one place of a batch."""

    indices: tuple[int, ...]
    """Sample indices; one unless packed."""
    padding: bool = False
    """Repeats another pack to complete the last step; its labels do not enter the loss."""


class PackSizes(NamedTuple):
    """What some packs hold; an array with a number for each."""

    lengths: np.ndarray
    """Tokens."""
    tiles: np.ndarray
    text_work: np.ndarray
    """FLOPs in the language model, were no row padded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """Every pack of an epoch in order."""

    samples: np.ndarray
    """Sample indices of all packs, joined."""
    offsets: np.ndarray | None
    """(num_packs + 1,): pack u is ``samples[offsets[u]:offsets[u + 1]]``; None: one sample each."""
    global_batch_size: int
    """Packs per step."""
    num_steps: int
    padding_pack: int
    """The pack that completes the last step: the shortest of them."""
    lengths: Values
    """Tokens by sample."""
    tiles: Values
    """Image tiles by sample."""
    max_packed_tokens: int | None
    """Limit of a pack, when packing."""
    rule: int
    """By which it was made; under the first one a step is cut as it stands."""

    @property
    def num_packs(self) -> int:
        """Packs, padding packs not counted."""
        return len(self.samples) if self.offsets is None else len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Memory that is its own: lengths and tiles belong to the data set."""
        return self.samples.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def span(self, number: int) -> tuple[int, int]:
        """Where the samples of pack ``number`` begin and end in ``samples``."""
        if self.offsets is None:
            return number, number + 1
        return int(self.offsets[number]), int(self.offsets[number + 1])

    def pack(self, number: int) -> Pack:
        """Pack ``number`` of the epoch; beyond the last one, the padding."""
        padding = number >= self.num_packs
        number = self.padding_pack if padding else number
        first, last = self.span(number)
        return Pack(tuple(self.samples[first:last].tolist()), padding)

    def packs(self, step: int) -> list[Pack]:
        """The ``global_batch_size`` packs of a step."""
        first = step * self.global_batch_size
        return [self.pack(number) for number in range(first, first + self.global_batch_size)]

    def cut(
        self,
        *,
        world_size: int,
        micro_batch_size: int,
        rates: WorkRates = V1_2_RATES,
        row_multiple: int = 1,
    ) -> StepCut:
        """The micro batches that a step of this plan has.

        Raises:
            ValueError: the global batch does not divide.
        """
        accumulation, rest = divmod(self.global_batch_size, world_size * micro_batch_size)
        if rest:
            raise ValueError(
                f"{self.global_batch_size} packs a step are no whole number of micro batches of "
                f"{micro_batch_size} on {world_size} ranks"
            )
        return StepCut(
            accumulation=accumulation,
            world_size=world_size,
            micro_batch_size=micro_batch_size,
            packed=self.offsets is not None,
            rates=rates,
            width_multiple=row_multiple,
        )

    def micro_batches(self, step: int, cut: StepCut, *, rank: int) -> list[list[Pack]]:
        """A rank's micro batches of a step; those of all ranks at a time take about as long."""
        first = step * self.global_batch_size
        dealt, _ = self.dealt(step, cut)
        return [
            [self.pack(first + place) for place in places] for places in dealt[:, rank].tolist()
        ]

    def dealt(self, step: int, cut: StepCut) -> tuple[np.ndarray, MicroWork]:
        """How a step is cut: (A, W, M) places in it, and the work of each micro batch."""
        lengths, tiles, text = self.sizes(step, cut.rates)
        if self.rule == 1:
            shape = (cut.accumulation, cut.world_size, cut.micro_batch_size)
            dealt = np.arange(self.global_batch_size).reshape(shape)
        else:
            dealt = deal(lengths, tiles, cut, text)
        return dealt, micro_work(dealt, lengths, tiles, text, cut)

    def sizes(self, step: int, rates: WorkRates) -> PackSizes:
        """What the packs of a step hold, padding packs included."""
        first = step * self.global_batch_size
        numbers = np.arange(first, first + self.global_batch_size)
        numbers[numbers >= self.num_packs] = self.padding_pack
        if self.offsets is None:
            samples, begins = self.samples[numbers], np.arange(len(numbers))
        else:
            spans = [slice(*self.span(number)) for number in numbers.tolist()]
            begins = np.cumsum([0, *(span.stop - span.start for span in spans[:-1])])
            samples = np.concatenate([self.samples[span] for span in spans])
        lengths = self.lengths[samples]
        tiles = self.tiles[samples]
        return PackSizes(
            np.add.reduceat(lengths, begins),
            np.add.reduceat(tiles, begins),
            np.add.reduceat(rates.text(lengths), begins),
        )

    def num_samples(self, first_step: int = 0, last_step: int | None = None) -> int:
        """Samples (padding packs not counted) in the steps ``first_step .. last_step - 1``."""
        last_step = self.num_steps if last_step is None else last_step
        borders = np.minimum(
            np.array([first_step, last_step]) * self.global_batch_size, self.num_packs
        )
        first, last = borders if self.offsets is None else self.offsets[borders]
        return int(last - first)


def joined(
    order: np.ndarray, sizes: np.ndarray, begins: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of the packs in the chosen order, and where each pack begins."""
    sizes, begins = sizes[chosen], begins[chosen]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    samples = np.empty_like(order)
    for first in range(0, len(sizes), BLOCK):
        last = min(first + BLOCK, len(sizes))
        start, stop = offsets[first], offsets[last]
        moves = np.repeat(begins[first:last] - offsets[first:last], sizes[first:last])
        samples[start:stop] = order[moves + np.arange(start, stop)]
    return samples, offsets
