"""Weights that change shape on their way in: more vocabulary rows, another image grid.

Both compute what a resize of the loaded module would have given, but on a range of elements, so
that under ZeRO-3 each rank works out only the part that it keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from internvl_chat.checkpoint.tensor_files import TensorSource, numel
from internvl_chat.errors import CheckpointError
from internvl_chat.model.modeling_intern_vit import interpolate_position_embedding

_CHUNK_ELEMENTS = 1 << 22


def mean_of_rows(source: TensorSource, num_rows: int) -> Tensor:
    """Mean of the first rows of a matrix, summed in float64 a few megabytes at a time.

    Args:
        source: (V, D).
        num_rows: how many rows count, at least one.

    Returns:
        (D,) float32; the same on every rank, whatever their number.
    """
    width = source.shape[1]
    step = max(1, _CHUNK_ELEMENTS // width)
    total = torch.zeros(width, dtype=torch.float64)
    for row in range(0, num_rows, step):
        stop = min(row + step, num_rows)
        total += source.read(row * width, stop * width).view(-1, width).double().sum(0)
    return (total / num_rows).float()


@dataclass
class GrownRows:
    """An embedding matrix with rows for new tokens: each the mean of the old rows.

    Rows past the end of the old matrix are new; so are those of tokens that were just added where
    the old matrix was padded beyond its tokenizer.
    """

    source: TensorSource
    """(V_old, D)."""
    num_rows: int
    """V_new >= V_old."""
    first_new_token: int
    """Ids below it belong to tokens that the checkpoint was trained with."""
    num_new_tokens: int
    """New tokens from ``first_new_token`` on."""
    _mean: Tensor | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_rows, self.source.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def where(self) -> str:
        return self.source.where

    def read(self, start: int, stop: int) -> Tensor:
        old_rows, width = self.source.shape
        old_stop = min(stop, old_rows * width)
        parts = [self.source.read(start, old_stop).clone()] if start < old_stop else []
        if stop > max(start, old_rows * width):
            parts.append(torch.empty(stop - max(start, old_rows * width), dtype=self.dtype))
        values = torch.cat(parts) if len(parts) > 1 else parts[0]
        self._fill(values, start, self.first_new_token, self.first_new_token + self.num_new_tokens)
        self._fill(values, start, old_rows, self.num_rows)
        return values

    def _fill(self, values: Tensor, start: int, first_row: int, end_row: int) -> None:
        """Write the mean into the part of rows ``first_row:end_row`` that ``values`` covers."""
        width = self.shape[1]
        begin = max(start, first_row * width)
        end = min(start + len(values), end_row * width)
        if begin >= end:
            return
        row_of_mean = self._mean_row().to(values.dtype)
        columns = torch.arange(begin, end) % width
        values[begin - start : end - start] = row_of_mean[columns]

    def _mean_row(self) -> Tensor:
        if self._mean is None:
            known = min(self.first_new_token, self.source.shape[0])
            self._mean = mean_of_rows(self.source, known)
        return self._mean


def resize_position_embedding(weight: Tensor, num_patches: int) -> Tensor:
    """Interpolate position embeddings to another square grid (bicubic, in fp32).

    Args:
        weight: (1, 1 + P, C), the class token's row first; it stays as it is.
        num_patches: P of the new grid.

    Returns:
        (1, 1 + num_patches, C) in the dtype of ``weight``.

    Raises:
        ValueError: one of the grids is no square.
    """
    old, new = math.isqrt(weight.shape[1] - 1), math.isqrt(num_patches)
    if old * old != weight.shape[1] - 1 or new * new != num_patches:
        raise ValueError(f"no square grids: {weight.shape[1] - 1} and {num_patches} patches")
    if old == new:
        return weight
    patches = interpolate_position_embedding(weight[:, 1:], new, new)
    return torch.cat([weight[:, :1], patches], dim=1)


@dataclass
class ResizedPositions:
    """Position embeddings of a ViT at another image size."""

    source: TensorSource
    """(1, 1 + P, C)."""
    num_patches: int
    _resized: Tensor | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1 + self.num_patches, self.source.shape[2])

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def where(self) -> str:
        return self.source.where

    def read(self, start: int, stop: int) -> Tensor:
        if self._resized is None:
            shape = self.source.shape
            whole = self.source.read(0, numel(shape)).view(shape)
            try:
                resized = resize_position_embedding(whole, self.num_patches)
            except ValueError as err:
                raise CheckpointError(str(err), where=self.where) from err
            self._resized = resized.reshape(-1)
        return self._resized[start:stop]
