"""Batch arithmetic: what divides, and what is offered when it does not."""

from __future__ import annotations

import pytest

from internvl_chat.train.batch_plan import BatchPlan


def test_accumulation_of_the_recipes() -> None:
    first = BatchPlan(global_batch_size=512, micro_batch_size=8, world_size=64)
    full = BatchPlan(global_batch_size=128, micro_batch_size=4, world_size=16)
    assert (first.accumulation_steps, full.accumulation_steps) == (1, 2)
    assert str(full) == "4 per rank x 16 ranks x 2 accumulation = 128 per step"


def test_indivisible_lists_what_works() -> None:
    with pytest.raises(ValueError, match="global batch size") as caught:
        BatchPlan(global_batch_size=130, micro_batch_size=4, world_size=2)
    assert str(caught.value) == (
        "the global batch size 130 is not micro batch x ranks x n = 4 x 2 x n. Nearest that work: "
        "128 or 136; or keep 130 with a micro batch of 1 or 5."
    )


def test_smaller_than_one_pass() -> None:
    with pytest.raises(ValueError, match=r"Nearest that work: 32\.$"):
        BatchPlan(global_batch_size=7, micro_batch_size=8, world_size=4)


@pytest.mark.parametrize("name", ["global_batch_size", "micro_batch_size", "world_size"])
def test_not_positive(name: str) -> None:
    values = {"global_batch_size": 4, "micro_batch_size": 2, "world_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0, want a number >= 1"):
        BatchPlan(**values)
