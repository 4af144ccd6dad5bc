"""Tests that want a GPU: ``pytest -m gpu tests/gpu``, a few minutes with a slow host.

Without one they skip. ``GPU_TESTS_ON_CPU=1`` runs their logic on the CPU, where the kernels are
others: to try the tests themselves.
"""

from __future__ import annotations

import os

import pytest
import torch

ON_CPU = "GPU_TESTS_ON_CPU"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; the CPU where that is asked for."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get(ON_CPU):
        return torch.device("cpu")
    pytest.skip(f"no GPU here ({ON_CPU}=1 tries the tests' logic on the CPU)")
