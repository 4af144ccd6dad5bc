"""One optimizer step has one gradient, however its samples are cut up and computed.

With plain SGD at learning rate 1 the change of the weights *is* the gradient (negated).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import Dataset, Run
from tests.support.training import largest_difference, logged, weights

pytestmark = pytest.mark.distributed

Folders = dict[str, Path]

DATASETS = {
    "shapes": Dataset(
        kinds=("text", "image", "two", "rounds", "text", "text", "image", "text"),
    )
}
TOLERANCE = 1e-6
"""fp32, two layers each, gradients up to about 1; 1e-7 to 3e-7 measured."""

STEP: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0,
    "weight_decay": 0,
    "max_steps": 1,
}
PACKED: dict[str, Any] = {
    "use_packed_ds": True,
    "max_packed_tokens": 256,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
}


def one(**options: Any) -> Run:
    """The eight samples at once in one process: what the others are held against."""
    options = {**STEP, "per_device_train_batch_size": 8, **options}
    return Run(dataset="shapes", options=options, processes=1)


def cut(**options: Any) -> Run:
    """The eight samples cut up over two processes."""
    return Run(dataset="shapes", options={**STEP, **options})


def micro(size: int, **options: Any) -> Run:
    """Micro batches of ``size``, as many as make eight samples."""
    accumulation = 4 // size
    return cut(
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, **options
    )


REFERENCES = {
    "reference": one(),
    "sample_reference": one(loss_reduction="sample"),
    "square_reference": one(loss_reduction="square"),
}
CUT = {
    "micro_1": micro(1),
    "micro_2": micro(2),
    "micro_4": micro(4),
    "eager": micro(4, attn_implementation="eager"),
    "checkpointed": micro(4, grad_checkpoint=True),
    "packed": cut(**PACKED),
    "packed_eager": cut(**PACKED, attn_implementation="eager"),
    "packed_sample": cut(**PACKED, loss_reduction="sample"),
    "micro_1_square": micro(1, loss_reduction="square"),
}
RUNS = {**REFERENCES, **CUT}
REFERENCE_OF = {"packed_sample": "sample_reference", "micro_1_square": "square_reference"}
EACH = pytest.mark.parametrize(
    ("name", "reference"), [(name, REFERENCE_OF.get(name, "reference")) for name in CUT]
)


@EACH
@pytest.mark.runs("{name}", "{reference}")
def test_gradient_is_the_same(trained: Folders, name: str, reference: str) -> None:
    assert largest_difference(weights(trained[reference]), weights(trained[name])) < TOLERANCE


@EACH
@pytest.mark.runs("{name}", "{reference}")
def test_loss_is_the_same(trained: Folders, name: str, reference: str) -> None:
    assert logged(trained[name]) == pytest.approx(logged(trained[reference]), abs=1e-5)


@pytest.mark.runs("reference")
def test_the_step_did_something(trained: Folders) -> None:
    moved = largest_difference(weights(trained["model"]), weights(trained["reference"]))
    assert moved > 1e-2


@pytest.mark.runs(*REFERENCES)
def test_reductions_differ(trained: Folders) -> None:
    token, sample = weights(trained["reference"]), weights(trained["sample_reference"])
    square = weights(trained["square_reference"])
    assert largest_difference(token, sample) > 1e-4
    assert largest_difference(token, square) > 1e-4
    assert largest_difference(sample, square) > 1e-4


@pytest.mark.runs("micro_1", "micro_4")
def test_stand_in_image_adds_no_gradient(trained: Folders) -> None:
    # micro_1 has text-only micro batches on one rank while the other holds images; micro_4 has
    # none: equal vision gradients mean that the blank tile's was exactly lost in rounding.
    one, four = weights(trained["micro_1"]), weights(trained["micro_4"])
    vision = [name for name in one if name.startswith(("vision_model", "mlp1"))]
    assert max((one[n] - four[n]).abs().max().item() for n in vision) < TOLERANCE
    assert all(torch.isfinite(one[name]).all() for name in vision)
