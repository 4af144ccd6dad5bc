"""Tests that want a GPU: ``pytest -m gpu tests/gpu``, a few minutes with a slow host.

Without one they skip. ``GPU_TESTS_ON_CPU=1`` runs their logic on the CPU, where the kernels are
others: to try the tests themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from internvl_chat.model.static_decoding import renew_generator

ON_CPU = "GPU_TESTS_ON_CPU"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; the CPU where that is asked for."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get(ON_CPU):
        return torch.device("cpu")
    pytest.skip(f"no GPU here ({ON_CPU}=1 tries the tests' logic on the CPU)")


@pytest.fixture(autouse=True)
def usable_afterwards() -> Iterator[None]:
    """The test that leaves the GPU so that no random numbers can be drawn is the one that fails.

    Those behind it get a generator that works, to fail by their own faults only.
    """
    yield
    if not torch.cuda.is_initialized():
        return
    torch.cuda.synchronize()
    stream = torch.cuda.current_stream()
    try:
        torch.rand(1, device="cuda").item()
    except RuntimeError as err:
        torch.cuda.set_stream(torch.cuda.default_stream())
        renew_generator(torch.device("cuda"))
        pytest.fail(f"after this test no random numbers can be drawn on the GPU: {err}")
    if stream != torch.cuda.default_stream():
        torch.cuda.set_stream(torch.cuda.default_stream())
        pytest.fail(f"this test leaves another stream as the current one: {stream}")
