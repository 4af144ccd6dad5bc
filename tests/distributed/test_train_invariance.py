"""One optimizer step has one gradient, however its samples are cut up and computed.

With plain SGD at learning rate 1 the change of the weights *is* the gradient (negated).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import (
    largest_difference,
    logged,
    run_cases,
    train_arguments,
    weights,
    write_dataset,
    write_tiny_chat_model,
)

pytestmark = pytest.mark.distributed

KINDS = ("text", "image", "two", "rounds", "text", "text", "image", "text")
TOLERANCE = 1e-6
"""fp32, two layers each, gradients up to about 1; 1e-7 to 3e-7 measured."""

STEP: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0,
    "weight_decay": 0,
    "max_steps": 1,
}
ONE_PROCESS = {
    "reference": {"per_device_train_batch_size": 8},
    "sample_reference": {"per_device_train_batch_size": 8, "loss_reduction": "sample"},
    "square_reference": {"per_device_train_batch_size": 8, "loss_reduction": "square"},
}
PACKED = {
    "use_packed_ds": True,
    "max_packed_tokens": 256,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
}
TWO_PROCESSES = {
    "micro_1": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "micro_2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "micro_4": {"per_device_train_batch_size": 4},
    "eager": {"per_device_train_batch_size": 4, "attn_implementation": "eager"},
    "checkpointed": {"per_device_train_batch_size": 4, "grad_checkpoint": True},
    "packed": PACKED,
    "packed_eager": {**PACKED, "attn_implementation": "eager"},
    "packed_sample": {**PACKED, "loss_reduction": "sample"},
    "micro_1_square": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "loss_reduction": "square",
    },
}
REFERENCE_OF = {"packed_sample": "sample_reference", "micro_1_square": "square_reference"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases trained; the result of each lies in the directory of its name."""
    root = tmp_path_factory.mktemp("invariance")
    model = write_tiny_chat_model(root / "model")
    meta = write_dataset(root / "data", KINDS)

    def case(name: str, options: dict[str, Any]) -> list[str]:
        return train_arguments(model, meta, root / name, **{**STEP, **options})

    run_cases(root, [case(*item) for item in ONE_PROCESS.items()], processes=1)
    run_cases(root, [case(*item) for item in TWO_PROCESSES.items()])
    return root


@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_gradient_is_the_same(trained: Path, name: str) -> None:
    reference = trained / REFERENCE_OF.get(name, "reference")
    assert largest_difference(weights(reference), weights(trained / name)) < TOLERANCE


@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_loss_is_the_same(trained: Path, name: str) -> None:
    reference = logged(trained / REFERENCE_OF.get(name, "reference"))
    assert logged(trained / name) == pytest.approx(reference, abs=1e-5)


def test_the_step_did_something(trained: Path) -> None:
    moved = largest_difference(weights(trained / "model"), weights(trained / "reference"))
    assert moved > 1e-2


def test_reductions_differ(trained: Path) -> None:
    token, sample = weights(trained / "reference"), weights(trained / "sample_reference")
    square = weights(trained / "square_reference")
    assert largest_difference(token, sample) > 1e-4
    assert largest_difference(token, square) > 1e-4
    assert largest_difference(sample, square) > 1e-4


def test_stand_in_image_adds_no_gradient(trained: Path) -> None:
    # micro_1 has text-only micro batches on one rank while the other holds images; micro_4 has
    # none: equal vision gradients mean that the blank tile's was exactly lost in rounding.
    one, four = weights(trained / "micro_1"), weights(trained / "micro_4")
    vision = [name for name in one if name.startswith(("vision_model", "mlp1"))]
    assert max((one[n] - four[n]).abs().max().item() for n in vision) < TOLERANCE
    assert all(torch.isfinite(one[name]).all() for name in vision)
