"""What DeepSpeed is told of the hardware."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator, real_accelerator
from deepspeed.runtime.zero.utils import get_norm_dtype

from internvl_chat.train.accelerators import SingleNormAccelerator, use_own_accelerator
from internvl_chat.train.distributed import _tell_deepspeed


def test_norms_on_a_gpu_are_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_accelerator, "ds_accelerator", None)
    use_own_accelerator("cuda")
    assert get_accelerator().communication_backend_name() == "nccl"
    assert get_norm_dtype() == torch.float32


def test_a_cpu_keeps_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_accelerator, "ds_accelerator", None)
    use_own_accelerator("cpu")
    assert get_accelerator().create_op_builder("ShareMemCommBuilder") is None
    assert get_norm_dtype() == torch.float64


def test_a_run_tells_it_before_communication_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_accelerator, "ds_accelerator", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    told: list[Any] = []
    monkeypatch.setattr(
        deepspeed, "init_distributed", lambda **kwargs: told.append(get_accelerator())
    )
    _tell_deepspeed("nccl", torch.device("cuda"))
    assert isinstance(told[0], SingleNormAccelerator)
