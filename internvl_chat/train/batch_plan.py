"""How the samples of one optimizer step are cut up.

``plan_batch`` in ``shell/lib/launch.sh`` does the same sum without Python;
``tests/cli/test_recipes.py`` holds the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Micro batch x ranks x accumulation = global batch.

    Raises:
        ValueError: a number is not positive, or the global batch does not divide; the message
            lists the nearest values that work.
    """

    global_batch_size: int
    """Samples (packs, when packing) per optimizer step, over all ranks."""
    micro_batch_size: int
    """Samples (packs) per rank in one forward pass."""
    world_size: int

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "micro_batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, want a number >= 1.")
        per_pass = self.micro_batch_size * self.world_size
        if self.global_batch_size % per_pass:
            raise ValueError(
                f"the global batch size {self.global_batch_size} is not micro batch x ranks x n = "
                f"{self.micro_batch_size} x {self.world_size} x n. Nearest that work: "
                f"{_nearest(self.global_batch_size, per_pass)}"
                f"{_micro_batches(self.global_batch_size, self.micro_batch_size, self.world_size)}."
            )

    @classmethod
    def from_accumulation(
        cls, *, micro_batch_size: int, world_size: int, accumulation_steps: int
    ) -> BatchPlan:
        """The plan whose global batch follows from the number of micro batches per step."""
        return cls(
            global_batch_size=micro_batch_size * world_size * accumulation_steps,
            micro_batch_size=micro_batch_size,
            world_size=world_size,
        )

    @property
    def accumulation_steps(self) -> int:
        """Micro batches per rank and optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def __str__(self) -> str:
        return (
            f"{self.micro_batch_size} per rank x {self.world_size} ranks x "
            f"{self.accumulation_steps} accumulation = {self.global_batch_size} per step"
        )


def _nearest(wanted: int, unit: int) -> str:
    below = wanted // unit * unit
    return " or ".join(str(value) for value in (below, below + unit) if value)


def _micro_batches(global_batch_size: int, micro_batch_size: int, world_size: int) -> str:
    """The micro batch sizes nearest to the wanted one for which the global batch divides."""
    if global_batch_size % world_size:
        return ""
    share = global_batch_size // world_size
    fitting = [size for size in range(1, share + 1) if share % size == 0]
    below = [size for size in fitting if size < micro_batch_size][-1:]
    above = [size for size in fitting if size > micro_batch_size][:1]
    values = " or ".join(str(size) for size in below + above)
    return f"; or keep {global_batch_size} with a micro batch of {values}"
