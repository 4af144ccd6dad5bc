"""Examples -> the tensors of one micro batch.

Legend: B rows, T tokens, N tiles of the micro batch, S side of a tile. Padded mode has a row per
sample; packed mode has a single row with all samples of the micro batch one behind the other, and
``cu_seq_lens`` says where they begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from internvl_chat.config import LossReduction
from internvl_chat.data.dataset import Example
from internvl_chat.errors import ConfigError
from internvl_chat.model.constants import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Puts a micro batch together.

    A call takes what the dataset gives for the packs of a micro batch (a list of examples each) and
    returns a dict of

    - ``input_ids``, ``labels`` (B, T) int64, ``position_ids`` (B, T) int64;
    - ``loss_weight`` (B, T) float32, aligned with ``labels``: what a supervised token weighs; 0
      elsewhere. The loss of a global batch is sum(weight * CE) / sum(weight) over all of it;
    - padded: ``attention_mask`` (B, T) int64; packed (B = 1): ``cu_seq_lens_q``, ``cu_seq_lens_k``
      (samples + 1,) int32, ``max_length_q``, ``max_length_k`` int;
    - ``pixel_values`` (N, 3, S, S) uint8 and ``image_flags`` (N,) int64, reading order; both absent
      if no sample has an image;
    - ``sample_ids``, ``dataset_ids`` (samples,) int64, in the order of rows or segments.

    The first label of each sample is IGNORE_INDEX: nothing precedes it that could predict it.
    """

    pad_token_id: int
    packed: bool = False
    loss_reduction: LossReduction = "token"
    row_multiple: int = 1
    """Padded mode: round T up (8 suits tensor cores)."""

    def __post_init__(self) -> None:
        if self.loss_reduction not in get_args(LossReduction):
            raise ConfigError(
                f"loss_reduction is {self.loss_reduction!r}",
                fix=f"Use one of {', '.join(get_args(LossReduction))}.",
            )

    def __call__(self, packs: Sequence[Sequence[Example]]) -> dict[str, Any]:
        examples = [example for pack in packs for example in pack]
        ids = [example.input_ids for example in examples]
        labels = [_supervised_labels(example) for example in examples]
        weights = [loss_weights(label, self.loss_reduction) for label in labels]
        batch = self._pack(ids, labels, weights) if self.packed else self._pad(ids, labels, weights)
        tiles = [e.pixel_values for e in examples if e.pixel_values is not None]
        if tiles:
            batch["pixel_values"] = torch.cat(tiles)
            batch["image_flags"] = torch.ones(len(batch["pixel_values"]), dtype=torch.int64)
        batch["sample_ids"] = torch.tensor([e.sample_index for e in examples], dtype=torch.int64)
        batch["dataset_ids"] = torch.tensor([e.dataset_id for e in examples], dtype=torch.int64)
        return batch

    def _pad(
        self, ids: list[Tensor], labels: list[Tensor], weights: list[Tensor]
    ) -> dict[str, Any]:
        lengths = torch.tensor([len(row) for row in ids])
        width = -(-int(lengths.max()) // self.row_multiple) * self.row_multiple
        columns = torch.arange(width)
        return {
            "input_ids": _stack(ids, width, self.pad_token_id),
            "labels": _stack(labels, width, IGNORE_INDEX),
            "attention_mask": (columns < lengths[:, None]).to(torch.int64),
            # Padding repeats the last position: within every model's range.
            "position_ids": torch.minimum(columns, lengths[:, None] - 1),
            "loss_weight": _stack(weights, width, 0.0),
        }

    def _pack(
        self, ids: list[Tensor], labels: list[Tensor], weights: list[Tensor]
    ) -> dict[str, Any]:
        lengths = [len(row) for row in ids]
        borders = torch.zeros(len(ids) + 1, dtype=torch.int32)
        borders[1:] = torch.cumsum(torch.tensor(lengths), dim=0)
        return {
            "input_ids": torch.cat(ids).unsqueeze(0),
            "labels": torch.cat(labels).unsqueeze(0),
            "position_ids": torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
            "loss_weight": torch.cat(weights).unsqueeze(0),
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders.clone(),
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }


def loss_weights(labels: Tensor, reduction: LossReduction) -> Tensor:
    """(T,) float32: weight of each supervised token of one sample with n of them.

    ``token`` 1, ``sample`` 1/n, ``square`` 1/sqrt(n).
    """
    supervised = (labels != IGNORE_INDEX).to(torch.float32)
    count = supervised.sum().clamp(min=1)
    if reduction == "sample":
        return supervised / count
    return supervised / count.sqrt() if reduction == "square" else supervised


def _supervised_labels(example: Example) -> Tensor:
    labels = example.labels.clone()
    labels[0] = IGNORE_INDEX
    if example.padding:
        labels.fill_(IGNORE_INDEX)
    return labels


def _stack(rows: list[Tensor], width: int, fill: float) -> Tensor:
    stacked = rows[0].new_full((len(rows), width), fill)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = row
    return stacked
