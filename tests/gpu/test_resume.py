"""ZeRO-3 with deterministic kernels: saved, resumed, bit for bit the same; what they cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from internvl_chat.train.attention import choose_attention, register_attention
from tests.support.training import ROOT, run_cases, train_arguments, weights, write_dataset

pytestmark = pytest.mark.gpu

KINDS = ("text", "image", "two", "rounds", "text", "image") * 6
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without it torch refuses deterministic matrix products on a GPU."""


def test_zero3_resumes_bit_for_bit(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CUBLAS.items():
        monkeypatch.setenv(name, value)
    meta = write_dataset(tmp_path, KINDS)
    through, again = tmp_path / "through", tmp_path / "again"

    def case(folder: Path) -> list[str]:
        return train_arguments(
            ROOT / "pretrained/internvl-chat-tiny",
            meta,
            folder,
            force_image_size=112,
            deepspeed="zero3",
            bf16=True,
            use_packed_ds=True,
            max_packed_tokens=256,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            grad_checkpoint=True,
            full_determinism=True,
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
        )

    copied = ["copy", str(through / "checkpoint-2"), str(again / "checkpoint-2")]
    run_cases(tmp_path, [case(through), copied, case(again)], processes=1, timeout=150)
    wanted, found = weights(through), weights(again)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    start = weights(ROOT / "pretrained/internvl-chat-tiny")
    assert any(not torch.equal(start[name].to(wanted[name].dtype), wanted[name]) for name in wanted)


def test_cost_of_deterministic_attention(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same gradients twice; the ratio of times is printed, no bound is put on it."""
    for name, value in CUBLAS.items():
        monkeypatch.setenv(name, value)
    register_attention()
    chosen = choose_attention("auto", packed=True, device=device, half_precision=True)
    kernel = ALL_ATTENTION_FUNCTIONS[chosen.llm]
    heads, groups, lengths = (32, 8, (512,) * 8) if device.type == "cuda" else (4, 2, (16,) * 4)
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, n, sum(lengths), 128, device=device, dtype=torch.bfloat16)
        for n in (heads, groups, groups)
    ]
    ends = torch.tensor((0, *lengths), device=device).cumsum(0).to(torch.int32)
    module = torch.nn.Module().train()

    def gradient() -> list[torch.Tensor]:
        leaves = [states.detach().requires_grad_() for states in inputs]
        out, _ = kernel(
            module,
            *leaves,
            None,
            scaling=128**-0.5,
            cu_seq_lens_q=ends,
            cu_seq_lens_k=ends,
            max_length_q=max(lengths),
            max_length_k=max(lengths),
            segment_lengths=lengths,
        )
        out.square().sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    usual = median_seconds(gradient, device)
    torch.use_deterministic_algorithms(True)
    try:
        deterministic = median_seconds(gradient, device)
        assert all(torch.equal(a, b) for a, b in zip(gradient(), gradient(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
    with capsys.disabled():
        print(f"\n{chosen.llm}, forward and backward: {deterministic / usual:.2f} times as long")


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of five calls, the first of all not counted."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
