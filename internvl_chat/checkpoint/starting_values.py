"""Weights that no file holds: a new projector, a new adapter."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.skeleton import Skeleton
from internvl_chat.checkpoint.tensor_files import TensorSource, numel

_INIT_STREAM: Final = "initial weights"
_CHUNK_ELEMENTS: Final = 1 << 22


@dataclass
class NewTensor:
    """Values that no file holds: uniform in ``[-bound, bound]``, or one constant.

    The numbers depend on name and seed only, not on rank, world size or what else is made.
    """

    name: str
    shape: tuple[int, ...]
    bound: float = 0.0
    constant: float = 0.0
    seed: int = 0
    _values: Tensor | None = field(default=None, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def where(self) -> str:
        return f"{_INIT_STREAM}: {self.name}"

    def read(self, start: int, stop: int) -> Tensor:
        if self.bound == 0.0:
            return torch.full((stop - start,), self.constant)
        if self._values is None:
            generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) ^ self.seed)
            values = torch.rand(numel(self.shape), generator=generator)
            self._values = values.mul_(2 * self.bound).sub_(self.bound)
        return self._values[start:stop]


@dataclass
class RowNorms:
    """The lengths of a layer's rows: where DoRA's magnitudes start, so that it changes nothing.

    DoRA: https://arxiv.org/abs/2402.09353, section 4.1.
    """

    weight: TensorSource
    """(out, in)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[:1]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def where(self) -> str:
        return f"lengths of the rows of {self.weight.where}"

    def read(self, start: int, stop: int) -> Tensor:
        width = self.weight.shape[1]
        step = max(1, _CHUNK_ELEMENTS // width)
        parts = []
        for row in range(start, stop, step):
            values = self.weight.read(row * width, min(row + step, stop) * width)
            parts.append(values.float().view(-1, width).norm(dim=1))
        return torch.cat(parts) if parts else torch.empty(0)


def new_tensor(name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> NewTensor:
    """Starting values, as torch and PEFT choose them for such a layer.

    Linear layers and ``lora_A`` are uniform within 1/sqrt(fan_in), ``lora_B`` is zero (so that the
    adapter starts as the identity), a norm's weight is one.
    """
    shape = shapes[name]
    if ".lora_B." in name:
        return NewTensor(name, shape)
    weight = shapes.get(name.removesuffix("bias") + "weight", shape)
    if len(weight) == 1:  # of the LayerNorm
        return NewTensor(name, shape, constant=float(name.endswith("weight")))
    return NewTensor(name, shape, bound=1 / math.sqrt(weight[1]), seed=seed)


def new_adapter_tensor(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, TensorSource],
    seed: int,
) -> TensorSource:
    """Starting values of an adapter's weight.

    Args:
        name, shapes, seed: of :func:`new_tensor`.
        layers: the weights of the layers under adapters, by parameter name.
    """
    layer, is_magnitude, _ = name.partition(f"{names.MAGNITUDE}.")
    if is_magnitude:
        return RowNorms(layers[f"{layer}.base_layer.weight"])
    return new_tensor(name, shapes, seed)


def new_projector(skeleton: Skeleton, seed: int) -> dict[str, TensorSource]:
    """Starting values of every tensor of the projector."""
    return {
        name: new_tensor(name, skeleton.shapes, seed)
        for name in skeleton.shapes
        if name.startswith(names.MLP_PREFIX)
    }
