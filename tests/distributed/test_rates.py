"""Rates by part in two gloo processes: every ZeRO stage as without, resumed, with other rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import Copy, Dataset, Run
from tests.support.training import ROOT, largest_difference, logged, weights

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

Folders = dict[str, Path]

DATASETS = {"mixed": Dataset(kinds=("text", "image", "two", "rounds", "text", "image") * 3)}
RATES = {
    "learning_rate": 1e-3,
    "vision_lr": 4e-3,
    "mlp_lr": 2e-3,
    "vit_layer_decay_rate": 0.5,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
}
ZERO = {stage: ROOT / f"shell/deepspeed/zero_stage{stage}_config.json" for stage in (1, 2, 3)}
LORA = {
    **RATES,
    "deepspeed": ZERO[3],
    "freeze_llm": True,
    "freeze_backbone": True,
    "use_llm_lora": 4,
    "use_backbone_lora": 2,
}
FASTER = {"vision_lr": 8e-3, "vit_layer_decay_rate": 0.25}


def goes_on(name: str, **other: object) -> Run:
    """From the second step of another run, with some other rates."""
    before = Copy(f"{name}/checkpoint-2", "checkpoint-2")
    return Run(dataset="mixed", options={**RUNS[name].options, **other}, before=(before,))


# Without DeepSpeed first: accelerate remembers it for the rest of a process.
RUNS: dict[str, Run] = {"plain": Run(dataset="mixed", options=RATES)}
RUNS["plain_again"] = goes_on("plain")
RUNS["plain_faster"] = goes_on("plain", **FASTER)
RUNS["lora"] = Run(dataset="mixed", options={**LORA, "deepspeed": ""})
for stage in ZERO:
    sharded = {**RATES, "deepspeed": ZERO[stage]}
    RUNS[f"stage{stage}"] = Run(dataset="mixed", options=sharded)
    RUNS[f"stage{stage}_again"] = goes_on(f"stage{stage}")
    RUNS[f"stage{stage}_faster"] = goes_on(f"stage{stage}", **FASTER)
RUNS["offload"] = Run(
    dataset="mixed",
    options={**RATES, "deepspeed": ROOT / "shell/deepspeed/zero_stage3_offload_config.json"},
)
RUNS["lora_stage3"] = Run(dataset="mixed", options=LORA)
RUNS["stage3_one_rate"] = Run(
    dataset="mixed",
    options={
        name: value
        for name, value in RUNS["stage3"].options.items()
        if name not in ("vision_lr", "mlp_lr", "vit_layer_decay_rate")
    },
    before=(Copy("stage3/checkpoint-2", "checkpoint-2"),),
)


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3", "offload"])
@pytest.mark.runs("plain", "{name}")
def test_sharded_equals_plain(trained: Folders, name: str) -> None:
    assert logged(trained[name]) == pytest.approx(logged(trained["plain"]), abs=2e-5)
    for figure in ("learning_rate", "learning_rate/vision", "learning_rate/mlp", "grad_norm"):
        plain = logged(trained["plain"], figure)
        assert len(plain) == 4
        assert logged(trained[name], figure) == pytest.approx(plain, rel=1e-4)
    # fp32 in another order of summation; Adam divides by gradients near 0.
    assert largest_difference(weights(trained[name]), weights(trained["plain"])) < 2e-4


@pytest.mark.runs("lora", "lora_stage3")
def test_adapters_at_two_rates(trained: Folders) -> None:
    plain, sharded = (
        weights(trained[name], "adapter_model.safetensors") for name in ("lora", "lora_stage3")
    )
    assert largest_difference(plain, sharded) < 2e-4
    assert logged(trained["lora_stage3"], "learning_rate/vision")[0] == pytest.approx(2e-3)


@pytest.mark.parametrize("name", ["plain", "stage1", "stage3"])
@pytest.mark.runs("{name}", "{name}_again", "{name}_faster")
def test_resumed_with_the_same_and_with_other_rates(trained: Folders, name: str) -> None:
    once, again = trained[name], trained[f"{name}_again"]
    for figure in ("loss", "learning_rate", "learning_rate/vision", "learning_rate/llm"):
        assert logged(again, figure) == logged(once, figure)
    assert largest_difference(weights(once), weights(again)) == 0
    faster = trained[f"{name}_faster"]
    assert logged(faster, "learning_rate/mlp") == logged(once, "learning_rate/mlp")
    before, now = (logged(folder, "learning_rate/vision") for folder in (once, faster))
    assert now[:2] == before[:2]
    assert now[2:] == pytest.approx(before[2:])  # 8e-3 * 0.25 and 4e-3 * 0.5
    assert largest_difference(weights(once), weights(faster)) > 1e-5


@pytest.mark.runs("stage3", "stage3_one_rate")
def test_other_groups_are_refused_where_deepspeed_cut_them_up(trained: Folders) -> None:
    told = (trained["stage3_one_rate"] / "error.txt").read_text()
    assert told.startswith("2 ")
    assert "of a run with rates by part and layer, this one has one learning rate" in told
