"""Drawing of tokens."""

from __future__ import annotations

from typing import Any

import torch

from internvl_chat.serve.sampling import Sampler
from tests.support.serving import sampling

LOGITS = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()


def draws(number: int, **settings: Any) -> list[int]:
    sampler = Sampler(sampling(**settings))
    return [sampler.draw(LOGITS) for _ in range(number)]


def test_zero_takes_the_likeliest() -> None:
    assert draws(5, temperature=0, top_p=0.01) == [1] * 5


def test_a_seed_means_the_same_again() -> None:
    assert draws(50, seed=4) == draws(50, seed=4)
    assert draws(50, seed=4) != draws(50, seed=5)
    assert draws(50) != draws(50)  # 1e-18


def test_frequencies_follow_the_temperature() -> None:
    for temperature in (1.0, 0.5):
        wanted = (LOGITS / temperature).softmax(-1)
        drawn = torch.tensor(draws(4000, temperature=temperature, seed=1)).bincount(minlength=4)
        # Standard deviation at most 0.008.
        torch.testing.assert_close(drawn / 4000, wanted, atol=0.04, rtol=0)


def test_top_p_keeps_the_likeliest_that_reach_it() -> None:
    assert set(draws(300, top_p=0, seed=1)) == {1}
    assert set(draws(300, top_p=0.5, seed=1)) == {1}
    assert set(draws(300, top_p=0.51, seed=1)) == {1, 2}
    assert set(draws(300, top_p=1.0, seed=1)) == {0, 1, 2, 3}
