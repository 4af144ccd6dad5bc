"""Batch arithmetic, as the trainer and as the launch scripts ask for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from internvl_chat.train import batch_plan
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


def test_as_a_script() -> None:
    script = [sys.executable, str(Path(batch_plan.__file__))]
    good = subprocess.run([*script, "128", "4", "16"], capture_output=True, text=True)
    assert (good.returncode, good.stdout) == (0, "2\n")
    bad = subprocess.run([*script, "100", "4", "16"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert "Nearest that work: 64 or 128" in bad.stderr
