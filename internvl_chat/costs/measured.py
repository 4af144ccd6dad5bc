"""Efficiencies that were measured, for telling how long a run will take.

MFU as the trainer logs it (``costs/flops.py``: arithmetic that the samples need, over the device's
dense peak). A new measurement is a row here; ``benchmarks/gpu_train.py`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Trained = Literal["full", "lora"]


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """One measurement."""

    device: str
    """By its exact name (``machine/peaks.py``)."""
    trained: Trained
    packed: bool
    stage: int
    """Of ZeRO; 0 without DeepSpeed."""
    recompute: bool
    low: float
    high: float
    """MFU of slow and fast steps, 0 to 1; equal where it was one figure."""
    source: str
    """What was measured, and where the figure is from."""


_MID_ON_H200: Final = (
    "3.35 B parameters on one GPU, one and two packs of 4,096 tokens a forward pass, PyTorch 2.11, "
    "DeepSpeed 0.19.8"
)
_LORA_ON_H200: Final = (
    "40 B parameters on one GPU, LoRA of rank 16, two packs of 4,096 tokens a step, PyTorch 2.11, "
    "DeepSpeed 0.19.8"
)
MEASURED: Final[tuple[MeasuredRun, ...]] = (
    MeasuredRun(
        device="NVIDIA A100-SXM4-80GB",
        trained="full",
        packed=False,
        stage=3,
        recompute=True,
        low=0.137,
        high=0.20,
        source="18 hours for 1.27 M samples on 64 GPUs, as the guide of InternVL-Chat-V1-2 says of "
        "the original code, at 512 to 700 tokens a sample",
    ),
    MeasuredRun(
        device="NVIDIA H100 80GB HBM3",
        trained="full",
        packed=True,
        stage=3,
        recompute=True,
        low=0.17,
        high=0.18,
        source="3.35 B parameters on one GPU, one pack of 4,096 tokens a forward pass, on a host "
        "that is slow at starting kernels",
    ),
    MeasuredRun(
        device="NVIDIA H100 80GB HBM3",
        trained="full",
        packed=True,
        stage=1,
        recompute=True,
        low=0.21,
        high=0.22,
        source="3.35 B parameters on one GPU, one pack of 4,096 tokens a forward pass, on a host "
        "that is slow at starting kernels",
    ),
    MeasuredRun(
        device="NVIDIA H100 80GB HBM3",
        trained="full",
        packed=True,
        stage=0,
        recompute=True,
        low=0.22,
        high=0.23,
        source="3.35 B parameters on one GPU, one pack of 4,096 tokens a forward pass, on a host "
        "that is slow at starting kernels",
    ),
    MeasuredRun(
        device="NVIDIA H200",
        trained="full",
        packed=True,
        stage=3,
        recompute=True,
        low=0.300,
        high=0.327,
        source=_MID_ON_H200,
    ),
    MeasuredRun(
        device="NVIDIA H200",
        trained="full",
        packed=True,
        stage=1,
        recompute=True,
        low=0.327,
        high=0.335,
        source=_MID_ON_H200,
    ),
    MeasuredRun(
        device="NVIDIA H200",
        trained="full",
        packed=True,
        stage=0,
        recompute=True,
        low=0.312,
        high=0.312,
        source="3.35 B parameters on one GPU, two packs of 4,096 tokens a forward pass, before "
        "norms were fused",
    ),
    MeasuredRun(
        device="NVIDIA H200",
        trained="full",
        packed=True,
        stage=0,
        recompute=False,
        low=0.35,
        high=0.496,
        source="3.35 B parameters on one GPU, a plain loop in place of the trainer: one pack of "
        "4,096 tokens a forward pass, and two with fused norms",
    ),
    MeasuredRun(
        device="NVIDIA H200",
        trained="lora",
        packed=True,
        stage=3,
        recompute=True,
        low=0.313,
        high=0.325,
        source=_LORA_ON_H200,
    ),
    MeasuredRun(
        device="NVIDIA H200",
        trained="lora",
        packed=True,
        stage=0,
        recompute=True,
        low=0.339,
        high=0.363,
        source=_LORA_ON_H200,
    ),
    MeasuredRun(
        device="NVIDIA H200",
        trained="lora",
        packed=False,
        stage=0,
        recompute=True,
        low=0.307,
        high=0.331,
        source="40 B parameters on one GPU, LoRA of rank 16, grouped, 4 samples a forward pass of "
        "16 a step, PyTorch 2.11",
    ),
)


def nearest(
    *,
    device: str | None,
    trained: Trained,
    packed: bool,
    stage: int,
    recompute: bool,
    rows: Iterable[MeasuredRun] = MEASURED,
) -> MeasuredRun:
    """The measurement whose setting is most like a run's.

    What trains weighs most, then packing, whether weights are gathered (ZeRO-3), recomputation, and
    the device last: utilisation varies less between GPUs than between settings. Of equals, that of
    the same stage.

    Args:
        device, trained, packed, stage, recompute: of the run.
        rows: to choose from.
    """

    def likeness(row: MeasuredRun) -> float:
        return (
            16 * (row.trained == trained)
            + 8 * (row.packed == packed)
            + 4 * ((row.stage == 3) == (stage == 3))
            + 2 * (row.recompute == recompute)
            + (row.device == device)
            + 0.5 * (row.stage == stage)
        )

    return max(rows, key=likeness)


ZERO3_SHARES: Final[Mapping[Trained, str]] = {
    "full": "0.98 of ZeRO-1's speed with two packs of 4,096 tokens a forward pass, 0.92 with one "
    "(3.35 B parameters, one NVIDIA H200), 0.83 on a host slow at starting kernels (an H100)",
    "lora": "0.94 of the speed without DeepSpeed (40 B parameters, one NVIDIA H200)",
}
"""Tokens a second under ZeRO-3 over those of a lower stage, in words, with the card.
What has no row has nothing said of it."""

COMPILED: Final = (
    "1.04 times as fast, with 26 s more for its first step (3.35 B parameters in full, packed, "
    "ZeRO-1, one NVIDIA H200)"
)
"""Blocks compiled beside blocks as they are, in words."""


def zero3_share(trained: Trained) -> str | None:
    """How fast ZeRO-3 was measured beside a lower stage; None where nobody has.

    Args:
        trained: what trains.
    """
    return ZERO3_SHARES.get(trained)
