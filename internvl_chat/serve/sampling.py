"""The next token of one row. ``V``: size of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request wants its tokens drawn."""

    temperature: float
    """0 takes the likeliest token, whatever the others say."""
    top_p: float
    """Only the likeliest tokens that together reach this probability are drawn from; 0 leaves the
    likeliest one."""
    seed: int | None
    """None: another answer every time."""


class Sampler:
    """Draws one row's tokens from a generator of its own.

    The generator lives on the CPU, so that a seed means the same whoever shares the batch and
    wherever the model runs.
    """

    def __init__(self, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self._sampling.temperature == 0

    def draw(self, logits: Tensor) -> int:
        """The next token from (V,) logits of any dtype and device."""
        if self.is_greedy:
            return int(logits.argmax())
        scaled = logits.double().cpu() / self._sampling.temperature
        probabilities, tokens = scaled.softmax(-1).sort(descending=True, stable=True)
        if self._sampling.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            is_out = (before >= self._sampling.top_p) & (before > 0)
            probabilities = probabilities.masked_fill(is_out, 0.0)
        place = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(tokens[place])
