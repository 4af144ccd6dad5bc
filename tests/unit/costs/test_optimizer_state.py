"""What optimizers are said to keep against what they keep after a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from internvl_chat.costs.optimizer_state import optimizer_state

_BESIDE = ("step", "qmap1", "qmap2", "RMS")
"""A number each, or tables that all tensors share."""


@pytest.mark.parametrize(
    ("optim", "optim_args"),
    [
        ("adamw_torch", None),
        ("adafactor", None),
        ("sgd", None),
        ("sgd", "momentum=0.9"),
        ("adagrad", None),
        ("rmsprop", None),
        ("rmsprop", "momentum=0.5,centered=True"),
        ("adamw_bnb_8bit", None),
        ("adamw_8bit", None),
        ("paged_adamw_8bit", None),
        ("paged_adamw_32bit", None),
        ("lion_8bit", None),
        ("lion_32bit", None),
        ("rmsprop_bnb", None),
        ("rmsprop_bnb_8bit", None),
        ("ademamix", None),
        ("ademamix_8bit", None),
    ],
)
def test_what_is_kept_of_a_matrix_and_a_vector(
    optim: str, optim_args: str | None, tmp_path: Any
) -> None:
    """To the byte; the small one is in fp32 whatever the optimizer."""
    train = TrainingArguments(
        output_dir=str(tmp_path), optim=optim, optim_args=optim_args, use_cpu=True
    )
    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(train)
    tensors = [nn.Parameter(torch.ones(50, 200)), nn.Parameter(torch.ones(100))]
    optimizer = kind(tensors, **keywords)
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 0.1)
    optimizer.step()
    rule = optimizer_state(optim, optim_args)
    for tensor, factors in zip(tensors, (250, 0), strict=True):
        kept = [
            value.nbytes
            for name, value in optimizer.state[tensor].items()
            if isinstance(value, torch.Tensor) and name not in _BESIDE
        ]
        assert rule.kept(tensor.numel(), factors=factors) == sum(kept)


def test_worked_out_by_hand() -> None:
    """Two moments of 8 bits and of each 256 a scale; embeddings in fp32 with bitsandbytes alone."""
    assert optimizer_state("adamw_8bit").kept(10_000) == 2 * (10_000 + 4 * 40)
    assert optimizer_state("adamw_8bit").kept(10_000, is_embedding=True) == 8 * 10_000
    assert optimizer_state("adamw_torch_8bit").kept(10_240, is_embedding=True) == 2 * (10_240 + 160)
    assert optimizer_state("adamw_torch_4bit").kept(10_240) == 2 * (5_120 + 4 * 80)
    assert optimizer_state("galore_adafactor_layerwise").kept(100, factors=20) == 80
    assert optimizer_state("sgd", "nesterov=True").kept(100) == 0


def test_paged_state_gives_way_where_it_is_worth_a_page() -> None:
    rule = optimizer_state("paged_lion_8bit")
    assert (rule.gives_way(100_000), rule.gives_way(99_999)) == (True, False)
    assert not optimizer_state("lion_8bit").gives_way(10**6)


def test_every_name_of_transformers_is_known_to_keep_something_or_not() -> None:
    kept = {name.value: optimizer_state(name.value).kept(10**6) for name in OptimizerNames}
    assert {name for name, count in kept.items() if count == 0} == {"sgd", "lomo"}
    assert {name for name, count in kept.items() if count > 8 * 10**6} == {
        *("ademamix", "paged_ademamix_32bit", "grokadamw")
    }
    assert {name for name, count in kept.items() if count < 4 * 10**6} - {"sgd", "lomo"} == {
        name for name in kept if "8bit" in name or "4bit" in name
    }
