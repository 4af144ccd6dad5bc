"""The true shapes of parameters, wherever and however their values are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape, partitioned (ZeRO-3) or not, in 4 bits or not."""
    shape = getattr(parameter, "ds_shape", None)
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes, which packs two in a byte
    if shape is None and state is not None:
        shape = state.shape
    return tuple(parameter.shape if shape is None else shape)


def full_numel(parameter: Tensor) -> int:
    """Number of elements, partitioned or not."""
    return math.prod(full_shape(parameter))
