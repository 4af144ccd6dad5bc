"""One optimizer step has one gradient, however its samples are cut up and computed.

With plain SGD at learning rate 1 the change of the weights *is* the gradient (negated).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat import InternVLChatModel
from internvl_chat.costs.flops import ModelFlops
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

PADDING_PACK = 53
"""Tokens of the shortest of three packs, which has a tile and comes again without labels as the
step's fourth: no sample, but work like any other."""


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
def test_dummy_image_adds_no_gradient(trained: Folders) -> None:
    # micro_1 has text-only micro batches on one rank while the other holds images; micro_4 has
    # none: equal vision gradients mean that the blank tile's was exactly lost in rounding.
    one, four = weights(trained["micro_1"]), weights(trained["micro_4"])
    vision = [name for name in one if name.startswith(("vision_model", "mlp1"))]
    assert max((one[n] - four[n]).abs().max().item() for n in vision) < TOLERANCE
    assert all(torch.isfinite(one[name]).all() for name in vision)


def counted(folder: Path) -> tuple[float, float]:
    """Samples and tokens of the one step, from the rates and the time that it logged."""
    (seconds,) = logged(folder, "step_seconds")
    (samples,), (tokens,) = (logged(folder, f"{name}_per_second") for name in ("samples", "tokens"))
    return samples * seconds, tokens * seconds


@EACH
@pytest.mark.runs("{name}", "{reference}")
def test_what_a_step_counts_is_the_same(trained: Folders, name: str, reference: str) -> None:
    samples, tokens = counted(trained[name])
    assert samples == pytest.approx(8)
    added = PADDING_PACK if name.startswith("packed") else 0
    assert tokens == pytest.approx(counted(trained[reference])[1] + added)
    (padding,) = logged(trained[name], "padding_share")
    # One row at a time, packed or not, has nothing to be padded to.
    assert (padding == 0) == (RUNS[name].options["per_device_train_batch_size"] == 1)


@pytest.mark.runs("reference", "micro_4")
def test_the_other_figures_of_a_step(trained: Folders) -> None:
    for folder in (trained["reference"], trained["micro_4"]):
        (waited,), (memory,) = (logged(folder, n) for n in ("data_wait_share", "peak_memory_gib"))
        assert 0 < waited < 1
        assert 0.1 < memory < 20  # GiB that a process with torch holds
        assert logged(folder, "mfu") == []  # nobody knows a CPU's peak


def total_flops(folder: Path) -> float:
    flops: float = json.loads((folder / "trainer_state.json").read_text())["total_flos"]
    return flops


@EACH
@pytest.mark.runs("{name}", "{reference}")
def test_model_flops_are_the_same(trained: Folders, name: str, reference: str) -> None:
    """Neither padding nor dummy tiles are any."""
    model = InternVLChatModel.from_pretrained(trained["model"])
    added = 0.0
    if name.startswith("packed"):
        added = ModelFlops.of_model(model).of_batch([PADDING_PACK], 1, 0)
    assert total_flops(trained[name]) == total_flops(trained[reference]) + added


@pytest.mark.runs("reference", "micro_4", "micro_1", "packed")
def test_imbalance_of_the_ranks(trained: Folders) -> None:
    def found(name: str) -> tuple[float, float]:
        (vision,), (text,) = (logged(trained[name], f"{n}_imbalance") for n in ("vit", "llm"))
        return vision, text

    assert found("reference") == (1.0, 1.0)  # one rank
    # Five tiles in two micro batches side by side: 3 and 2, or 4 and 1, or 5 and a dummy tile.
    vision, text = found("micro_4")
    assert vision in (pytest.approx(3 / 2.5), pytest.approx(4 / 2.5), pytest.approx(5 / 3))
    # Rows are as long as the longest of their micro batch.
    assert 1.0 <= text < 2.0
    print("IMB", found("micro_4"), found("micro_1"), found("packed"))
    assert all(1.0 <= value < 2.0 for value in (*found("micro_1"), *found("packed")))
