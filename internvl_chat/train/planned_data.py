"""The data of a run that is only planned: lengths, steps, and the micro batch that needs most.

Records are counted where annotation and tokenizer are there, some thousands of a dataset; what is
missing counts as many samples as the meta's ``length`` says, each of a stated number of tokens. The
order is then the run's own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from internvl_chat.config import DataConfig, HeldOutConfig, OrderConfig
from internvl_chat.costs.activations import LargestMicroBatch
from internvl_chat.costs.work import WorkRates
from internvl_chat.data.balance import StepCut
from internvl_chat.data.encode import Encoder
from internvl_chat.data.epoch_plan import EpochPlan
from internvl_chat.data.imbalance import Imbalance, expected_imbalance
from internvl_chat.data.lengths import FilelessCounter, sampled_lengths
from internvl_chat.data.meta import DatasetSpec, read_meta
from internvl_chat.data.mixture import apportion, open_annotation
from internvl_chat.data.sampler import plan_epoch
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.train.batch_plan import BatchPlan

_MOST_CHUNKS: Final = 8
"""Of 512 records, counted of a dataset."""
_LARGEST_SAMPLES: Final = 64
"""Whose steps are looked at for the micro batch that needs most memory."""


@dataclass(frozen=True, kw_only=True)
class PlannedData:
    """Samples of an epoch."""

    tokens: np.ndarray
    """(n,) ids by sample."""
    tiles: np.ndarray
    """(n,)"""
    is_stated: bool
    """Whether the tokens of any dataset are no count."""
    notes: tuple[str, ...]


def planned_data(
    config: DataConfig, tokenizer: Any | None, *, held_out: HeldOutConfig | None, stated: int
) -> PlannedData:
    """Count or estimate the samples of an epoch.

    Args:
        config: of the run.
        tokenizer: of the model; None where it is not there.
        held_out: what does not train.
        stated: tokens of a sample that cannot be counted, image tokens included.

    Raises:
        DatasetError: the meta is wrong, or does not say how many records a missing file has.
    """
    reading = read_meta(config.meta_path, needs_files=False)
    if reading.problems:
        raise DatasetError(
            "; ".join(problem.sentence for problem in reading.problems), where=config.meta_path
        )
    encoder = None if tokenizer is None else Encoder(tokenizer, config.encode)
    specs = [one.limited(config.max_samples) for one in reading.specs]
    parts = [_dataset(spec, config, encoder, held_out, stated) for spec in specs]
    samples = [(part.tokens, part.tiles) for part in parts]
    if config.use_data_resampling:
        samples = _resampled(samples, np.array([spec.weight for spec in specs]))
    return PlannedData(
        tokens=np.concatenate([tokens for tokens, _ in samples]).astype(np.int32),
        tiles=np.concatenate([tiles for _, tiles in samples]).astype(np.int32),
        is_stated=any(part.missing for part in parts),
        notes=tuple(_told(parts, stated)),
    )


@dataclass(frozen=True)
class _DatasetSamples:
    """A dataset's samples in an epoch."""

    tokens: np.ndarray
    tiles: np.ndarray
    num_records: int
    num_counted: int
    missing: str
    """What it could not be counted without."""


def _told(parts: list[_DatasetSamples], stated: int) -> Iterator[str]:
    """What is no count, a sentence for all datasets that lack the same."""
    for missing in dict.fromkeys(part.missing for part in parts if part.missing):
        alike = [part for part in parts if part.missing == missing]
        records = sum(part.num_records for part in alike)
        yield (
            f"{len(alike)} of {len(parts)} datasets have no {missing}: each of their {records:,} "
            f"records is taken for {stated} tokens (--sample_tokens), the largest micro batch for "
            "what the limits allow"
        )
    partly = [part for part in parts if not part.missing and part.num_counted < part.num_records]
    if partly:
        counted, records = (
            sum(part.num_counted for part in partly),
            sum(part.num_records for part in partly),
        )
        yield f"{counted:,} of {records:,} records of {len(partly)} datasets are counted"


def _dataset(
    spec: DatasetSpec,
    config: DataConfig,
    encoder: Encoder | None,
    held_out: HeldOutConfig | None,
    stated: int,
) -> _DatasetSamples:
    there = os.path.isfile(spec.annotation)
    file = open_annotation(spec) if there else None
    records = _promised(spec) if file is None else len(file)
    tokens, tiles, missing = np.array([stated]), np.array([1]), ""
    if file is None:
        missing = "annotation file"
    elif encoder is None:
        missing = "tokenizer to count them with"
    else:
        counter = FilelessCounter(spec, file, encoder, config.media)
        tokens, tiles = sampled_lengths(counter, most_chunks=_MOST_CHUNKS)
        if len(tokens) == 0:
            raise DatasetError("no record of it can be trained on", where=spec.annotation)
    taken = min(records, spec.max_samples or records)
    if held_out is not None:
        amount = held_out.amount
        taken -= min(round(taken * amount) if amount < 1 else int(amount), taken - 1)
    count = max(spec.num_samples(taken), 1)
    return _DatasetSamples(
        np.resize(tokens, count), np.resize(tiles, count), records, len(tokens), missing
    )


def _promised(spec: DatasetSpec) -> int:
    if spec.length:
        return spec.length
    raise DatasetError(
        f"{spec.annotation} is not there, and no length says how many records it has",
        where=f'dataset "{spec.name}"',
        fix='Write "length" into the meta JSON, or put the file there.',
    )


_Samples = tuple[np.ndarray, np.ndarray]


def _resampled(parts: list[_Samples], weights: np.ndarray) -> list[_Samples]:
    counts = [len(tokens) for tokens, _ in parts]
    quotas = apportion(sum(counts), weights * np.sqrt(counts))
    return [
        (np.resize(tokens, quota), np.resize(tiles, quota))
        for (tokens, tiles), quota in zip(parts, quotas, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class PlannedEpoch:
    """An epoch of the run's own order."""

    steps: int
    tokens: int
    """Of samples, padding left out."""
    pairs: float
    """Of tokens that see each other, in all samples."""
    tiles: int
    imbalance: Imbalance
    """How evenly the ranks are busy, padding included."""
    largest: LargestMicroBatch


def planned_epoch(
    data: PlannedData,
    order: OrderConfig,
    batch: BatchPlan,
    rates: WorkRates,
    *,
    seed: int,
    num_image_token: int,
    tile_weight: float,
    row_multiple: int = 1,
) -> PlannedEpoch:
    """Plan the first epoch and look for the micro batch that needs most memory.

    Args:
        data: samples of an epoch.
        order: of the run.
        batch: of the run.
        rates: of the model, by which steps are cut.
        seed: of the order.
        num_image_token: K.
        tile_weight: how many positions of the language model a tile weighs in memory.
        row_multiple: what the lengths of padded rows are rounded up to.

    Raises:
        ConfigError: the samples do not fill a step, and the last one is dropped.
    """
    try:
        plan = plan_epoch(
            data.tokens,
            seed=seed,
            epoch=0,
            global_batch_size=batch.global_batch_size,
            mode=order.mode,
            max_packed_tokens=order.max_packed_tokens,
            tiles=data.tiles,
            max_packed_tiles=order.max_packed_tiles,
            drop_last=order.drop_last,
        )
    except ValueError as err:
        raise ConfigError(str(err), where="the order of an epoch") from err
    cut = plan.cut(
        world_size=batch.world_size,
        micro_batch_size=batch.micro_batch_size,
        rates=rates,
        row_multiple=row_multiple,
    )
    used = data.tokens[plan.samples].astype(np.float64)
    return PlannedEpoch(
        steps=plan.num_steps,
        tokens=int(used.sum()),
        pairs=float((used * (used + 1) / 2).sum()),
        tiles=int(data.tiles[plan.samples].sum()),
        imbalance=expected_imbalance(plan, cut),
        largest=_largest(plan, cut, num_image_token, tile_weight),
    )


def _largest(
    plan: EpochPlan, cut: StepCut, num_image_token: int, tile_weight: float
) -> LargestMicroBatch:
    """The micro batch that needs most, of the steps that hold the largest packs."""
    micro, packed = cut.micro_batch_size, plan.offsets is not None
    worst, found = -1.0, (0, 0, 0)
    for step in _steps_of_largest(plan, tile_weight):
        dealt, _ = plan.dealt(step, cut)
        sizes = plan.sizes(step, cut.rates)
        lengths = sizes.lengths[dealt].reshape(-1, micro)
        tiles = sizes.tiles[dealt].reshape(-1, micro).sum(axis=1)
        positions = lengths.sum(axis=1) if packed else lengths.max(axis=1) * micro
        weights = positions + tile_weight * tiles
        number = int(np.argmax(weights))
        if weights[number] > worst:
            worst = float(weights[number])
            found = int(positions[number]), int(tiles[number]), int(lengths[number].sum())
    rows = 1 if packed else micro
    positions_, tiles_, tokens = found
    return LargestMicroBatch(
        rows=rows,
        row_tokens=positions_ // rows,
        num_tiles=tiles_,
        num_supervised=max(tokens - tiles_ * num_image_token, 1),
    )


def _steps_of_largest(plan: EpochPlan, tile_weight: float) -> list[int]:
    """The first step, which an order by length puts first for its size, and those of the largest
    samples."""
    weights = plan.lengths[plan.samples] + tile_weight * plan.tiles[plan.samples]
    places = np.argsort(-weights)[:_LARGEST_SAMPLES]
    packs = places if plan.offsets is None else np.searchsorted(plan.offsets, places, "right") - 1
    steps = np.unique(packs // plan.global_batch_size)
    return sorted({0, *steps[steps < plan.num_steps].tolist()})


def stated_largest(
    *, packed: bool, micro_batch_size: int, tokens: int, tiles: int, num_image_token: int
) -> LargestMicroBatch:
    """The largest micro batch that the limits allow, where lengths are no counts.

    Args:
        packed: whether its packs are joined in one row.
        micro_batch_size: of the run.
        tokens: longest sample or pack.
        tiles: of a sample, most of them.
        num_image_token: K.
    """
    most = max(tokens // max(num_image_token, 1), 1)
    per_pack = min(most, tiles) if not packed else max(min(most, math.ceil(tokens / 512)), tiles)
    total = per_pack * micro_batch_size
    rows = 1 if packed else micro_batch_size
    return LargestMicroBatch(
        rows=rows,
        row_tokens=tokens * micro_batch_size // rows,
        num_tiles=total,
        num_supervised=max(tokens * micro_batch_size - total * num_image_token, 1),
    )
