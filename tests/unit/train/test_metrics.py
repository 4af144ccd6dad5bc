"""Clock, FLOPs and step figures: every number worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from internvl_chat import InternVLChatModel
from internvl_chat.checkpoint.partition import full_numel
from internvl_chat.model.presets import load_preset
from internvl_chat.train import metrics
from internvl_chat.train.loss import COUNTED, count_step
from internvl_chat.train.metrics import (
    ModelFlops,
    StepClock,
    flops_per_token,
    peak_flops,
    peak_memory_bytes,
    step_figures,
)

I = -100  # noqa: E741 - reads like the table it stands in


# ---- clock ---------------------------------------------------------------------------------------


def set_clock(monkeypatch: pytest.MonkeyPatch, times: Sequence[float]) -> None:
    """The module reads these times, one after the other."""
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=iter(times).__next__))


def test_clock_reads_the_time_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    # Built at 100; read at 104 and started again at 105; read at 107.5.
    set_clock(monkeypatch, [100.0, 104.0, 105.0, 107.5, 108.0])
    clock = StepClock()
    clock.add_wait(0.5)
    clock.add_wait(0.25)
    assert clock.read() == (4.0, 0.75)
    assert clock.read() == (2.5, 0.0)


def test_reset_forgets_what_lay_before(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, [0.0, 60.0, 61.0, 62.0])
    clock = StepClock()
    clock.add_wait(30.0)
    clock.reset()
    clock.add_wait(0.125)
    assert clock.read() == (1.0, 0.125)


def test_a_clock_that_stands_still_divides_by_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, [5.0, 5.0, 5.0])
    assert StepClock().read() == (1e-9, 0.0)


# ---- device --------------------------------------------------------------------------------------


def test_peak_memory_of_a_process_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(ru_maxrss=2**20)  # KiB, says getrusage(2)
    fake = SimpleNamespace(getrusage=lambda who: usage, RUSAGE_SELF=0)
    monkeypatch.setattr(metrics, "resource", fake)
    assert peak_memory_bytes(torch.device("cpu")) == 2**30


def test_peak_memory_is_what_the_kernel_counts() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    # Two counts of one thing, the second a little behind and with the parent's before exec in it.
    assert kib * 1024 / 2 < peak_memory_bytes(torch.device("cpu")) < kib * 1024 * 100


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", None),
    ],
)
def test_peak_flops_by_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == peak


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None


# ---- FLOPs ---------------------------------------------------------------------------------------


def parameter(size: int, *, trains: bool) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size), requires_grad=trains)


@pytest.mark.parametrize(
    ("trains", "needs_input_grad", "flops"),
    [
        (True, True, 60.0),  # forward, gradient of the input, gradient of the weight: 3 x 2 x 10
        (True, False, 40.0),  # the first layer that trains
        (False, True, 40.0),  # frozen, with something that trains before it
        (False, False, 20.0),  # forward alone
    ],
)
def test_flops_of_ten_weights(trains: bool, needs_input_grad: bool, flops: float) -> None:
    weights = [parameter(10, trains=trains)]
    assert flops_per_token(weights, needs_input_grad=needs_input_grad) == flops


def test_flops_add_up_over_parameters() -> None:
    weights = [parameter(10, trains=True), parameter(3, trains=False)]
    assert flops_per_token(weights, needs_input_grad=True) == 60.0 + 12.0
    assert flops_per_token([], needs_input_grad=True) == 0.0


def test_a_partitioned_parameter_counts_whole() -> None:
    weight = parameter(0, trains=True)  # what ZeRO-3 leaves on a rank
    weight.ds_shape = (5, 2)
    assert full_numel(weight) == 10
    assert flops_per_token([weight], needs_input_grad=True) == 60.0


def test_flops_of_a_batch() -> None:
    flops = ModelFlops(
        per_text_token=100.0,
        per_vision_token=10.0,
        vision_tokens_per_tile=5,
        tokens_per_tile=4,
        per_projected_token=1.0,
    )
    # 20 x 100 of text; 3 tiles of 5 x 10 in the tower and 4 x 1 in the projector
    assert flops.of_batch(20, 3) == 2000.0 + 150.0 + 12.0
    assert flops.of_batch(20, 0) == 2000.0


LAYER = 2 * 7168 * 7168 + 2 * 7168 * 1024 + 3 * 7168 * 20480 + 2 * 7168
"""Yi-34B: query and output, key and value of 8 heads of 128, gated MLP, two norms."""
TEXT = 60 * LAYER + 7168 + 64000 * 7168
"""Layers, last norm, output layer; without the embedding table."""
VISION, PROJECTOR = 5_536_496_000, 143_170_560
"""Held by tests/unit/model/test_presets.py."""


@pytest.fixture(scope="module")
def v1_2() -> InternVLChatModel:
    with torch.device("meta"):
        return InternVLChatModel(load_preset("InternVL-Chat-V1-2"))


def set_trainable(model: InternVLChatModel, *, vision: bool, projector: bool, llm: bool) -> None:
    model.vision_model.requires_grad_(vision)
    model.mlp1.requires_grad_(projector)
    model.language_model.requires_grad_(llm)


def test_flops_of_v1_2_when_all_of_it_trains(v1_2: InternVLChatModel) -> None:
    """By the formula without attention and embedding table: 6 a weight and token."""
    set_trainable(v1_2, vision=True, projector=True, llm=True)
    flops = ModelFlops.of_model(v1_2)
    assert TEXT == 33_930_165_248
    assert (flops.vision_tokens_per_tile, flops.tokens_per_tile) == (1025, 256)
    tower = flops.vision_tokens_per_tile * flops.per_vision_token
    assert tower == 1025 * 6 * VISION == 34_049_450_400_000  # 34.05 TFLOP a tile
    llm = flops.of_batch(256, 0)
    assert llm == 256 * 6 * TEXT == 52_116_733_820_928  # 52.1 TFLOP for its tokens
    assert flops.of_batch(256, 1) == tower + 256 * 6 * PROJECTOR + llm


def test_flops_of_v1_2_when_the_projector_alone_trains(v1_2: InternVLChatModel) -> None:
    set_trainable(v1_2, vision=False, projector=True, llm=False)
    flops = ModelFlops.of_model(v1_2)
    assert flops.per_vision_token == 2 * VISION  # forward alone
    assert flops.per_projected_token == 6 * PROJECTOR
    assert flops.per_text_token == 4 * TEXT  # gradients pass through to the projector


def test_flops_of_v1_2_when_the_llm_alone_trains(v1_2: InternVLChatModel) -> None:
    set_trainable(v1_2, vision=False, projector=False, llm=True)
    flops = ModelFlops.of_model(v1_2)
    assert flops.per_vision_token == 2 * VISION
    assert flops.per_projected_token == 2 * PROJECTOR
    assert flops.per_text_token == 6 * TEXT


def test_flops_of_v1_2_when_nothing_trains(v1_2: InternVLChatModel) -> None:
    set_trainable(v1_2, vision=False, projector=False, llm=False)
    assert ModelFlops.of_model(v1_2).of_batch(1, 0) == 2 * TEXT


# ---- figures of a step ---------------------------------------------------------------------------


def figures(**changes: float | None) -> dict[str, float]:
    """Four steps in 8 s: 32 samples, 600 tokens in 800 positions."""
    values = {
        "loss": 6.0,
        "steps": 4,
        "seconds": 8.0,
        "waited_seconds": 2.0,
        "peak_memory_bytes": 3.0 * 2**30,
        "flops": 16e12,
        "peak_flops": 8e12,
        "grad_norm": 0.5,
    }
    counts = {"weight": 1.0, "samples": 32.0, "tokens": 600.0, "positions": 800.0, "tiles": 9.0}
    return step_figures(counts=counts, **{**values, **changes})  # type: ignore[arg-type]


def test_figures_of_four_steps() -> None:
    assert figures() == {
        "loss": 1.5,
        "samples_per_second": 4.0,
        "tokens_per_second": 75.0,
        "padding_share": 0.25,
        "data_wait_share": 0.25,
        "step_seconds": 2.0,
        "peak_memory_gib": 3.0,
        "grad_norm": 0.5,
        "mfu": 0.25,  # 2 TFLOP/s of 8
    }


def test_unknown_figures_are_left_out() -> None:
    assert "mfu" not in figures(peak_flops=None)
    assert "grad_norm" not in figures(grad_norm=None)
    assert figures(grad_norm=0.0)["grad_norm"] == 0.0


def test_padding_share_of_a_padded_and_a_packed_batch() -> None:
    """Rows of 5, 3 and 2 tokens: a third of 15 positions is padding; packed, none."""
    labels = torch.tensor([[I, I, 5, 6, 7], [I, 8, 9, I, I], [I, 4, I, I, I]])
    padded = {
        "labels": labels,
        "loss_weight": (labels != I).float(),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]),
        "dataset_ids": torch.tensor([0, 0, 0]),
    }
    row = torch.tensor([[I, I, 5, 6, 7, I, 8, 9, I, 4]])
    packed = {
        "labels": row,
        "loss_weight": (row != I).float(),
        "cu_seq_lens_q": torch.tensor([0, 5, 8, 10], dtype=torch.int32),
        "dataset_ids": torch.tensor([0, 0, 0]),
    }
    both = []
    for batch in (padded, packed):
        counts = dict(zip(COUNTED, count_step([batch]).tolist(), strict=True))
        assert (counts["samples"], counts["tokens"], counts["supervised"]) == (3, 10, 6)
        both.append(
            step_figures(
                loss=1.0,
                steps=1,
                seconds=2.0,
                counts=counts,
                waited_seconds=0.0,
                peak_memory_bytes=0.0,
                flops=0.0,
                peak_flops=None,
                grad_norm=None,
            )
        )
    assert [f["padding_share"] for f in both] == [pytest.approx(1 / 3), 0.0]
    assert [f["samples_per_second"] for f in both] == [1.5, 1.5]
    assert [f["tokens_per_second"] for f in both] == [5.0, 5.0]
