"""DeepSpeed's buffers are capped at the size of a small model, so that they do not outweigh it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from internvl_chat.train.trainer import InternVLTrainer

BUCKETS = ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size")


def shrink(
    config: dict[str, Any], model: nn.Module, *, deepspeed: bool = True, world_size: int = 2
) -> dict[str, Any]:
    """``config`` after the trainer's hook, which reads these few attributes of it alone."""
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(config=config))
    trainer: Any = SimpleNamespace(
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
        model=model,
        args=SimpleNamespace(world_size=world_size),
    )
    InternVLTrainer._settle_deepspeed(trainer)
    return config


def model_of_ten() -> nn.Module:
    return nn.Linear(4, 2)  # 8 weights and 2 biases


@pytest.mark.parametrize("key", BUCKETS)
@pytest.mark.parametrize("value", [int(1e9), 1e9])
def test_capped_at_the_models_size(key: str, value: float) -> None:
    zero = shrink({"zero_optimization": {key: value}}, model_of_ten())["zero_optimization"]
    assert zero == {key: 10}
    assert isinstance(zero[key], int)


@pytest.mark.parametrize("value", ["auto", 9, 10])
def test_smaller_values_and_auto_stay(value: int | str) -> None:
    config = {"zero_optimization": dict.fromkeys(BUCKETS, value)}
    assert shrink(config, model_of_ten()) == {"zero_optimization": dict.fromkeys(BUCKETS, value)}


def test_other_settings_stay() -> None:
    zero = {"stage": 2, "stage3_max_live_parameters": 1e9, "reduce_bucket_size": 1e9}
    config = {"zero_optimization": zero, "train_batch_size": 512}
    assert shrink(config, model_of_ten()) == {
        "zero_optimization": {
            "stage": 2,
            "stage3_max_live_parameters": 1e9,
            "reduce_bucket_size": 10,
        },
        "train_batch_size": 512,
    }
    assert shrink({"train_batch_size": 512}, model_of_ten()) == {"train_batch_size": 512}


def test_a_partitioned_parameter_counts_whole() -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(0))])
    model[0].ds_shape = (7,)
    config = {"zero_optimization": {"reduce_bucket_size": 100}}
    assert shrink(config, model) == {"zero_optimization": {"reduce_bucket_size": 7}}


def test_a_model_without_parameters_leaves_room_for_one() -> None:
    config = {"zero_optimization": {"reduce_bucket_size": 100}}
    assert shrink(config, nn.Identity()) == {"zero_optimization": {"reduce_bucket_size": 1}}


def test_nothing_happens_without_deepspeed() -> None:
    config = {"zero_optimization": {"reduce_bucket_size": 100}}
    shrink(config, model_of_ten(), deepspeed=False)
    assert config == {"zero_optimization": {"reduce_bucket_size": 100}}


def test_one_rank_reduces_as_a_whole() -> None:
    zero = {"stage": 2, "reduce_scatter": True, "overlap_comm": True}
    alone = shrink({"zero_optimization": dict(zero)}, model_of_ten(), world_size=1)
    assert alone["zero_optimization"] == {**zero, "reduce_scatter": False, "overlap_comm": False}
    assert shrink({"zero_optimization": dict(zero)}, model_of_ten())["zero_optimization"] == zero
