"""What DeepSpeed is told of the hardware."""

from __future__ import annotations

import pytest
import torch
from deepspeed.accelerator import get_accelerator, real_accelerator
from deepspeed.runtime.zero.utils import get_norm_dtype

from internvl_chat.train.accelerators import use_own_accelerator


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
