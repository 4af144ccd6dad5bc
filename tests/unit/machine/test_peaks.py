"""Peaks of GPUs: told apart by their exact names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from internvl_chat.machine.peaks import DEVICES, PRECISIONS, peaks_of


@pytest.mark.parametrize(
    ("name", "bf16", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 3.35e12),
        ("NVIDIA H100 PCIe", 756e12, 2.0e12),
        ("NVIDIA H100 NVL", 835.5e12, 3.9e12),
        ("NVIDIA H200", 989e12, 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 2.039e12),
        ("A100-SXM4-40GB", 312e12, 1.555e12),  # as older drivers say it
        ("NVIDIA GeForce RTX 4090", 165.2e12, 1.008e12),
        ("NVIDIA L40", 181.05e12, 0.864e12),
        ("nvidia  l40s", 362.05e12, 0.864e12),
    ],
)
def test_names_that_are_alike_are_told_apart(name: str, bf16: float, bandwidth: float) -> None:
    found = peaks_of(name)
    assert found is not None
    assert found.flops("bf16") == bf16
    assert found.memory_bandwidth == bandwidth


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA H100",  # which of them?
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",  # a part of one
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "cpu",
    ],
)
def test_an_unknown_name_has_no_peak(name: str) -> None:
    assert peaks_of(name) is None


def test_before_ampere_there_is_no_bf16() -> None:
    found = peaks_of("Tesla V100-SXM2-16GB")
    assert found is not None
    assert found.flops("bf16") is None
    assert found.flops("fp16") == 125e12
    assert found.memory_gib == 16


def test_figures_are_plausible() -> None:
    """A slip of a digit shows: each precision is slower than the one before it."""
    for peaks in DEVICES:
        assert set(peaks.teraflops) <= set(PRECISIONS)
        half = peaks.teraflops["fp16"]
        assert peaks.teraflops.get("bf16", half) == half
        assert half > peaks.teraflops.get("tf32", half / 2) >= peaks.teraflops["fp32"]
        assert 0.2e12 < peaks.memory_bandwidth < 10e12
        assert 14 < peaks.memory_gib < 300
    assert len({peaks.device for peaks in DEVICES}) == len(DEVICES)


def test_needs_no_torch() -> None:
    code = "import sys, internvl_chat.machine.peaks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
