"""fp32 products: where TF32 can be had, and that all who ask are told the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers.utils.import_utils import enable_tf32

from internvl_chat.train.products import settle_products, tf32_problem

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    enable_tf32.cache_clear() if hasattr(enable_tf32, "cache_clear") else None


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))


def test_where_it_can_be_had(ampere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tf32_problem(GPU) is None
    assert "this run is on cpu" in str(tf32_problem(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert "Ampere" in str(tf32_problem(GPU))


def test_all_names_of_the_setting_agree(ampere: None) -> None:
    enable_tf32(True)
    assert settle_products(GPU, tf32=True, is_fp32=True) is None
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.get_float32_matmul_precision() == "high"  # raises where they differ
    assert torch.backends.cuda.matmul.allow_tf32


def test_a_run_in_fp32_is_told_of_it(ampere: None) -> None:
    assert "--tf32 True" in str(settle_products(GPU, tf32=None, is_fp32=True))
    assert settle_products(GPU, tf32=None, is_fp32=False) is None
    assert settle_products(torch.device("cpu"), tf32=None, is_fp32=True) is None
    assert torch.get_float32_matmul_precision() == "highest"
