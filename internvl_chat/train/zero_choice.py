"""``--deepspeed auto``: the lowest ZeRO stage whose estimated memory fits the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from internvl_chat.errors import ConfigError
from internvl_chat.train.zero import is_installed, stage_of

AUTO: Final = "auto"
NO_ZERO: Final = "none"
STAGES: Final = (NO_ZERO, "zero1", "zero2", "zero3")
"""What ``auto`` chooses from, the fastest first: files by name, or no DeepSpeed."""
AUTO_IN_FOUR_BITS: Final = f"--deepspeed {AUTO}: {NO_ZERO}, as weights in 4 bits are not cut up"
MARGIN: Final = 0.1
"""Share of the device's memory that an estimate must leave: what fragments, and what it misses."""


@dataclass(frozen=True, kw_only=True)
class ZeroRoom:
    """What a rank has for its tensors."""

    memory_gib: float
    """Of the device; of the machine for each of its processes where there is none."""
    beside_gib: float
    """What is taken beside the tensors: CUDA's own memory, or Python and its libraries."""

    @property
    def usable_gib(self) -> float:
        """What an estimate may come to."""
        return self.memory_gib * (1 - MARGIN) - self.beside_gib

    def __str__(self) -> str:
        return (
            f"{self.usable_gib:.3g} GiB ({self.memory_gib:.3g} less {MARGIN:.0%} and "
            f"{self.beside_gib:g})"
        )


@dataclass(frozen=True, kw_only=True)
class ZeroChoice:
    """The outcome."""

    source: str | None
    """For ``--deepspeed``: a shipped file by name; None for a run without DeepSpeed."""
    told: str
    """Which, and why."""
    fits: bool


def is_auto(source: object) -> bool:
    """Whether ``--deepspeed`` leaves the choice; a file of that name goes first, as ever."""
    return isinstance(source, str) and source.lower() == AUTO and not Path(source).is_file()


def choose_zero(
    estimate: Callable[[str], float], room: ZeroRoom, *, former: str | None = None
) -> ZeroChoice:
    """Choose the lowest stage that fits, or where none does the one that needs least.

    Args:
        estimate: GiB of tensors on a rank, by name of :data:`STAGES` or of a shipped file.
        room: what there is.
        former: what the checkpoint was written with that the run goes on from, which decides: its
            optimizer's files are cut in its way. None to start anew.

    Raises:
        ConfigError: a stage is needed, and DeepSpeed is not installed.
    """
    names = STAGES if former in (None, *STAGES) else (*STAGES, former)
    needs = {name: estimate(name) for name in names}
    fitting = [name for name in STAGES if needs[name] <= room.usable_gib]
    listed = ", ".join(f"{name} {need:.3g}" for name, need in needs.items())
    figures = f"estimated GiB a rank: {listed}; there are {room}"
    chosen = former or (fitting[0] if fitting else min(STAGES, key=needs.__getitem__))
    if chosen != NO_ZERO and not is_installed():
        raise ConfigError(
            f"auto comes to {chosen}, and DeepSpeed is not installed. {figures}",
            where="--deepspeed",
            fix="pip install deepspeed (on Linux), or a smaller --per_device_train_batch_size, "
            "--grad_checkpoint True or LoRA; internvl-chat plan tells what each would save.",
        )
    fits = needs[chosen] <= room.usable_gib
    return ZeroChoice(
        source=None if chosen == NO_ZERO else chosen,
        told=f"--deepspeed auto: {chosen}, {_why(chosen, former, fitting, fits)}; {figures}",
        fits=fits,
    )


def _why(chosen: str, former: str | None, fitting: list[str], fits: bool) -> str:
    if former is None:
        if fits:
            return "the first that fits"
        return "which needs least and may not fit (internvl-chat plan tells what to change)"
    why = "as the checkpoint to go on from was written with it"
    if not fits:
        return f"{why}, though it may not fit here"
    if fitting and fitting[0] != chosen:
        return f"{why}, though {fitting[0]} would be the first that fits"
    return why


def former_zero(arguments: Mapping[str, Any]) -> str:
    """What a run was under, as a name that ``--deepspeed`` takes, or :data:`NO_ZERO`.

    Args:
        arguments: by name, as its ``arguments.json`` holds them.
    """
    config = arguments.get("deepspeed")
    stage = stage_of(config) if isinstance(config, dict) else 0
    if not stage:
        return NO_ZERO
    assert isinstance(config, dict)
    target = (config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none")
    offloads = stage > 1 and target not in ("none", None)
    return f"zero{stage}_offload" if offloads else f"zero{stage}"
