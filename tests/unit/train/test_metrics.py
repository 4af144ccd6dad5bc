"""Clock, FLOPs and step figures: every number worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from internvl_chat.train import metrics
from internvl_chat.train.loss import COUNTED, count_step
from internvl_chat.train.metrics import (
    StepClock,
    matmul_precision,
    peak_flops,
    peak_line,
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


def test_peak_flops_by_name_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak_flops(gpu, "bf16") == 756e12
    assert peak_flops(gpu, "fp32") == 51.2e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert peak_flops(gpu, "bf16") is None  # emulated there
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H900")
    assert peak_flops(gpu, "bf16") is None
    assert peak_flops(torch.device("cpu"), "fp32") is None


def test_the_log_says_what_mfu_is_a_share_of(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_line(gpu, "bf16") == (
        "mfu is a share of 989 TFLOP/s, this GPU's dense peak in bf16"
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H900")
    assert peak_line(gpu, "bf16") == (
        "mfu is not logged: nobody has written down what NVIDIA H900 reaches in bf16 "
        "(internvl_chat/machine/peaks.py)"
    )
    assert peak_line(torch.device("cpu"), "bf16") is None


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"bf16"}, "bf16"), ({"fp16"}, "fp16"), ({"tf32"}, "tf32"), ({"bf16", "tf32"}, "bf16")],
)
def test_precision_of_a_run(flags: set[str], precision: str) -> None:
    args = SimpleNamespace(**{name: name in flags for name in ("bf16", "fp16", "tf32")})
    assert matmul_precision(args) == precision  # type: ignore[arg-type]
    args = SimpleNamespace(bf16=False, fp16=False, tf32=None)
    assert matmul_precision(args) == "fp32"  # type: ignore[arg-type]


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
        "vit_imbalance": 1.5,
        "llm_imbalance": 1.25,
    }
    counts = {"weight": 1.0, "samples": 32.0, "tokens": 600.0, "positions": 800.0, "tiles": 9.0}
    return step_figures(counts=counts, **{**values, **changes})  # type: ignore[arg-type]


def test_figures_of_four_steps() -> None:
    assert figures() == {
        "loss": 1.5,
        "samples_per_second": 4.0,
        "tokens_per_second": 75.0,
        "padding_share": 0.25,
        "vit_imbalance": 1.5,
        "llm_imbalance": 1.25,
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
                vit_imbalance=1.0,
                llm_imbalance=1.0,
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
