"""Denominators: what the loss of one optimizer step is divided by, over all ranks.

The gradient of a step must not depend on how its samples are cut into micro batches and ranks, so
each micro batch contributes its weighted sum divided by the weights of the whole step.

Legend: B rows of a micro batch, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from internvl_chat.model.constants import IGNORE_INDEX

COUNTED = ("weight", "supervised", "tokens", "positions", "samples", "tiles")
"""Meaning of the entries of :func:`count_step`: loss weights, supervised tokens, tokens (positions
that do not pad a row, of padding samples too), all positions, samples without padding samples,
tiles."""


def count_step(batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Sum what the micro batches of this rank hold; add over ranks for the whole step.

    Args:
        batches: collated micro batches, on the CPU.

    Returns:
        (6,) float64, in the order of ``COUNTED``.
    """
    total = torch.zeros(len(COUNTED), dtype=torch.float64)
    for batch in batches:
        labels, supervised = batch["labels"], _is_supervised(batch)
        mask = batch.get("attention_mask")
        total += torch.tensor(
            [
                (batch["loss_weight"][:, 1:].double() * supervised).sum().item(),
                supervised.sum().item(),
                labels.numel() if mask is None else mask.sum().item(),
                labels.numel(),
                num_real_samples(batch),
                num_tiles(batch),
            ],
            dtype=torch.float64,
        )
    return total


def _is_supervised(batch: Mapping[str, Any]) -> Tensor:
    """(B, T - 1) bool: position 0 of a row predicts nothing."""
    return batch["labels"][:, 1:] != IGNORE_INDEX


def num_supervised(batch: Mapping[str, Any]) -> int:
    """Supervised tokens of a micro batch."""
    return int(_is_supervised(batch).sum())


def sample_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Tokens of each sample of a micro batch, without what pads its row."""
    segments = batch.get("cu_seq_lens_q")
    if segments is not None:
        return list(segments.diff().tolist())
    mask = batch.get("attention_mask")
    return sequence_lengths(batch) if mask is None else list(mask.sum(dim=1).tolist())


def sequence_lengths(batch: Mapping[str, Any]) -> list[int]:
    """Positions of each sequence that attends to itself: samples of a pack, or padded rows."""
    if batch.get("cu_seq_lens_q") is not None:
        return sample_lengths(batch)
    rows, width = batch["labels"].shape
    return [width] * rows


def num_tiles(batch: Mapping[str, Any]) -> int:
    """Real tiles of a micro batch."""
    flags = batch.get("image_flags")
    return 0 if flags is None else int(flags.sum())


def num_real_samples(batch: Mapping[str, Any]) -> int:
    """Samples of a micro batch with supervised tokens; padding samples have no labels."""
    supervised = batch["labels"] != IGNORE_INDEX
    if batch.get("cu_seq_lens_q") is None:
        return int(supervised.any(dim=1).sum())
    numbers = torch.arange(len(batch["dataset_ids"]))
    return len(torch.unique(_spread(batch, numbers)[supervised]))


def dataset_of_targets(batch: Mapping[str, Any]) -> Tensor:
    """Dataset id of every supervised position, in reading order of the shifted labels.

    Args:
        batch: with ``labels`` (B, T), ``dataset_ids`` (samples,) and, for a packed row,
            ``cu_seq_lens_q`` (samples + 1,).

    Returns:
        (supervised positions,) int64.
    """
    labels = batch["labels"]
    return _spread(batch, batch["dataset_ids"])[:, 1:][labels[:, 1:] != IGNORE_INDEX]


def _spread(batch: Mapping[str, Any], by_sample: Tensor) -> Tensor:
    """(samples,) -> (B, T): the value of the sample that each position belongs to."""
    segments = batch.get("cu_seq_lens_q")
    if segments is None:
        return by_sample[:, None].expand(batch["labels"].shape)
    return by_sample.repeat_interleave(segments.diff().long())[None]


class DatasetLosses:
    """Running loss by dataset on one rank: plain mean over supervised tokens, no weights."""

    def __init__(self, num_datasets: int, device: torch.device) -> None:
        self._sums = torch.zeros(2, num_datasets, dtype=torch.float64, device=device)

    def add(self, dataset_ids: Tensor, losses: Tensor) -> None:
        """Add the losses (R,) of supervised positions that belong to ``dataset_ids`` (R,)."""
        ids = dataset_ids.to(self._sums.device, non_blocking=True)
        self._sums[0].index_add_(0, ids, losses.detach().double())
        self._sums[1].index_add_(0, ids, torch.ones_like(ids, dtype=torch.float64))

    def drain(self) -> Tensor:
        """Return (2, datasets): sums of losses and numbers of tokens; start again from zero."""
        sums = self._sums.clone()
        self._sums.zero_()
        return sums


def losses_by_name(names: tuple[str, ...], sums: Tensor) -> dict[str, float]:
    """Mean per token of each dataset that had any; ``sums`` is (2, datasets)."""
    return {
        name: total / count
        for name, total, count in zip(names, *sums.tolist(), strict=True)
        if count
    }
