"""Work of a micro batch on a device, from lengths and tiles alone. Without torch.

FLOPs that the device really executes: recomputation is in, if the run recomputes, and so is what
nobody has a use for (positions that pad a row, dummy tiles), if the caller counts it in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class WorkRates:
    """FLOPs of forward and backward, by what a micro batch holds."""

    per_token: float
    """A position of the language model, the output layer included."""
    per_pair: float
    """A pair of positions of which the later one sees the other, itself included; all layers."""
    per_tile: float
    """A tile through vision tower and projector."""

    def text(self, lengths: ArrayLike) -> NDArray[np.float64]:
        """FLOPs in the language model of each sequence of so many tokens that sees itself only."""
        tokens = np.asarray(lengths, dtype=np.float64)
        return self.per_token * tokens + self.per_pair * tokens * (tokens + 1) / 2

    def vision(self, tiles: ArrayLike) -> NDArray[np.float64]:
        """FLOPs in vision tower and projector of so many tiles."""
        return self.per_tile * np.asarray(tiles, dtype=np.float64)
