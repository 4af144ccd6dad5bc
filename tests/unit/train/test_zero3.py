"""What our trainer sets of ZeRO-3 where the file leaves it open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from deepspeed.utils import get_z3_leaf_modules
from torch import nn

from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.train.arguments import ModelArguments, trainable_config
from internvl_chat.train.zero import reduce_at_once_alone, zero_config
from internvl_chat.train.zero3 import blocks_to_gather, settle_zero3
from tests.support.models import make_model

KEPT = "stage3_param_persistence_threshold"
LORA = ModelArguments(freeze_llm=True, freeze_mlp=True, freeze_backbone=True, use_llm_lora=4)


def model_with(arguments: ModelArguments) -> Any:
    model = make_model()
    if arguments.use_llm_lora:
        model.wrap_llm_lora(r=arguments.use_llm_lora, lora_alpha=8)
    apply_freezing_and_lora(model, trainable_config(arguments))
    return model


def places(model: nn.Module, blocks: Iterable[nn.Module]) -> list[str]:
    """Tower and number of each block."""
    found = {id(block) for block in blocks}
    named = ((name, module) for name, module in model.named_modules() if id(module) in found)
    return [f"{name.split('.')[0]} {name.split('.')[-1]}" for name, _ in named]


def test_the_first_block_that_trains_keeps_its_hooks() -> None:
    model = model_with(LORA)
    vision = [f"vision_model {i}" for i in range(len(model.vision_model.encoder.layers))]
    assert places(model, blocks_to_gather(model)) == [*vision, "language_model 1"]
    everything = model_with(ModelArguments())
    assert places(everything, blocks_to_gather(everything)) == [*vision[1:], "language_model 1"]
    some = model_with(ModelArguments(freeze_llm=True, freeze_backbone=True, unfreeze_vit_layers=-1))
    found = places(some, blocks_to_gather(some))
    assert found == [*vision[:-1], "language_model 0", "language_model 1"]


def test_a_block_too_large_to_be_gathered_keeps_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvl_chat.train.zero3.LARGEST_BLOCK", 10)
    assert not list(blocks_to_gather(model_with(LORA)))


def test_one_rank_keeps_everything_in_place() -> None:
    model = model_with(LORA)
    zero: dict[str, Any] = {"stage": 3, KEPT: 0}
    told = settle_zero3(zero, model, world_size=1)
    assert zero[KEPT] == sum(p.numel() for p in model.parameters())
    assert "one rank, so nothing is cut up" in told
    assert any("InternVisionEncoderLayer are gathered as a whole" in line for line in told)
    blocks = {id(block) for block in blocks_to_gather(model)}
    assert {id(leaf) for leaf in get_z3_leaf_modules(model)} == blocks, "DeepSpeed is not told"


def test_several_ranks_keep_the_adapters_in_place() -> None:
    model = model_with(LORA)
    zero: dict[str, Any] = {"stage": 3}
    settle_zero3(zero, model, world_size=2)
    assert zero[KEPT] == 100_000  # DeepSpeed's, larger than these adapters
    layer = next(m for n, m in model.named_modules() if n.endswith("q_proj.lora_A.default"))
    layer.weight = nn.Parameter(torch.zeros(16, 20_480))
    zero = {"stage": 3, KEPT: "auto"}
    settle_zero3(zero, model, world_size=2)
    assert zero[KEPT] == 16 * 20_480


def test_weights_on_the_cpu_are_not_all_kept_on_the_device() -> None:
    zero: dict[str, Any] = {"stage": 3, "offload_param": {"device": "cpu"}}
    settle_zero3(zero, model_with(LORA), world_size=1)
    assert zero[KEPT] == 100_000


@pytest.mark.parametrize(
    "own",
    [
        {"leaf_module": {"classes": ["LlamaMLP"]}, KEPT: 5},
        {"stage3_module_granularity_threshold": 7, KEPT: 5},
    ],
)
def test_what_the_file_says_stays(own: dict[str, Any]) -> None:
    model = model_with(LORA)
    zero: dict[str, Any] = {"stage": 3, **own}
    assert settle_zero3(zero, model, world_size=2) == []
    assert zero == {"stage": 3, **own}
    assert not any(hasattr(module, "_z3_leaf") for module in model.modules())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_other_stages_are_left_alone(stage: int) -> None:
    zero: dict[str, Any] = {"stage": stage}
    assert settle_zero3(zero, model_with(LORA), world_size=2) == []
    assert zero == {"stage": stage}


def test_linear_layers_are_torchs_where_blocks_are_recomputed() -> None:
    values = {"bf16": False, "fp16": False, "grad_checkpoint": True}
    key, cpu = "memory_efficient_linear", torch.device("cpu")

    def linear(stage: int, **own: Any) -> object:
        found = zero_config({"zero_optimization": {"stage": stage, **own}}, values, cpu)
        assert found is not None
        return found["zero_optimization"].get(key)

    assert linear(3) is False
    assert linear(3, **{key: True}) is True
    assert linear(2) is None
    values["grad_checkpoint"] = False
    assert linear(3) is None


@pytest.mark.parametrize(
    ("stage", "world_size", "kept"), [(1, 1, False), (2, 1, False), (1, 2, True), (3, 1, True)]
)
def test_one_rank_cuts_no_bucket_of_gradients(stage: int, world_size: int, kept: bool) -> None:
    zero: dict[str, Any] = {"stage": stage, "reduce_scatter": True, "overlap_comm": True}
    reduce_at_once_alone(zero, world_size)
    assert zero == {"stage": stage, "reduce_scatter": kept, "overlap_comm": kept}
