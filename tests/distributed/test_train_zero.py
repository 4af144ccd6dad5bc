"""Real runs of two gloo processes: ZeRO stages, mixed batches, resuming, LoRA, validation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl_chat.data.sampler import plan_epoch
from tests.support.training import (
    ROOT,
    largest_difference,
    logged,
    run_cases,
    train_arguments,
    weights,
    write_dataset,
    write_tiny_chat_model,
)

pytestmark = pytest.mark.distributed

ZERO = {stage: ROOT / f"shell/deepspeed/zero_stage{stage}_config.json" for stage in (1, 2, 3)}
MIXED = ("text", "image", "two", "rounds", "text", "image") * 3
COMBINED = ("text", "image", "two") * 12
COMBINED_SEED = 2
RESUMABLE: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "ddp": {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1},
    "zero3": {"deepspeed": ZERO[3], "use_packed_ds": True, "max_packed_tokens": 256},
    "lora": {
        "deepspeed": ZERO[2],
        "freeze_llm": True,
        "freeze_backbone": True,
        "use_llm_lora": 4,
        "learning_rate": 1e-2,
    },
}
"""What is resumed; each in another way of saving."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs; the result of each lies in the directory of its name."""
    root = tmp_path_factory.mktemp("zero")
    model = write_tiny_chat_model(root / "model")
    mixed = write_dataset(root / "data", MIXED)
    held_out = write_dataset(root / "data", MIXED[:5], name="held_out", seed=5)
    combined = write_dataset(root / "data", COMBINED, name="combined", seed=2)

    def case(name: str, meta: Path = mixed, **options: Any) -> list[str]:
        return train_arguments(model, meta, root / name, **options)

    cases = [case("stage0", max_steps=20, learning_rate=3e-3)]
    for stage, file in ZERO.items():
        cases.append(case(f"stage{stage}", max_steps=20, learning_rate=3e-3, deepspeed=file))
    offload = ROOT / "shell/deepspeed/zero_stage3_offload_config.json"
    cases.append(case("offload", max_steps=3, learning_rate=3e-3, deepspeed=offload))
    cases.append(
        case(
            "combined",
            combined,
            deepspeed=ZERO[3],
            per_device_train_batch_size=1,
            max_steps=len(COMBINED) // 2,
            seed=COMBINED_SEED,
        )
    )
    for name, options in VARIANTS.items():
        options = {**RESUMABLE, "drop_path_rate": 0.1, **options}
        cases.append(case(f"{name}_straight", **options))
        for step in (3, 6):
            copied = root / f"{name}_resumed/checkpoint-{step}"
            cases.append(["copy", str(root / f"{name}_straight/checkpoint-{step}"), str(copied)])
        cases.append(["damage", str(copied / "trainer_state.json")])
        cases.append(case(f"{name}_resumed", **options))
        cases.append(case(f"{name}_resumed", **options))  # finished: must do nothing
    evaluated = {"eval_meta_path": held_out, "eval_steps": 2, "eval_on_start": True}
    cases.append(case("eval", max_steps=2, per_device_eval_batch_size=1, **evaluated))
    cases.append(case("eval_zero3", max_steps=2, **evaluated, **VARIANTS["zero3"]))
    both = {**VARIANTS["lora"], "use_backbone_lora": 4}
    cases.append(case("both_loras", max_steps=3, **both))
    # So high a rate that the model is best after the first step or two, and not at the end.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    best |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    best |= {"eval_meta_path": held_out, "eval_steps": 1, "learning_rate": 0.3}
    for name, options in (("best", {}), ("best_zero3", VARIANTS["zero3"])):
        cases.append(case(name, max_steps=4, **best, **options))
    cases.append(case("bf16", max_steps=3, bf16=True, deepspeed=ZERO[3]))
    cases.append(case("other_batch", max_steps=3))
    cases.append(
        ["copy", str(root / "ddp_straight/checkpoint-3"), str(root / "other/checkpoint-3")]
    )
    cases.append(case("other", **RESUMABLE, per_device_train_batch_size=1))
    run_cases(root, cases)
    return root


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_have_the_same_losses(trained: Path, stage: int) -> None:
    plain = logged(trained / "stage0")
    assert len(plain) == 20
    assert plain[-1] < plain[0] - 0.5  # it learns
    assert logged(trained / f"stage{stage}") == pytest.approx(plain, abs=2e-5)


def test_offload_has_the_same_losses(trained: Path) -> None:
    # The learning rate's schedule is constant, so a shorter run begins the same.
    plain = logged(trained / "stage0")[:3]
    assert logged(trained / "offload") == pytest.approx(plain, abs=2e-5)


def test_every_combination_of_modalities_on_two_ranks(trained: Path) -> None:
    plan = plan_epoch(np.ones(len(COMBINED)), seed=COMBINED_SEED, epoch=0, global_batch_size=2)
    kinds = [tuple(COMBINED[i] for u in plan.units(s) for i in u.indices) for s in range(18)]
    assert set(kinds) == set(itertools.product(("text", "image", "two"), repeat=2))
    losses = logged(trained / "combined")
    assert len(losses) == 18
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted_bit_for_bit(trained: Path, name: str) -> None:
    straight, resumed = trained / f"{name}_straight", trained / f"{name}_resumed"
    for figure in ("loss", "learning_rate", "grad_norm"):
        assert logged(resumed, figure) == logged(straight, figure)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    assert largest_difference(weights(straight, file), weights(resumed, file)) == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_damaged_checkpoint_was_passed_over_and_replaced(trained: Path, name: str) -> None:
    state = trained / f"{name}_resumed/checkpoint-6/trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 6


def test_adapter_only_checkpoints(trained: Path) -> None:
    for directory in (trained / "lora_straight", trained / "lora_straight/checkpoint-3"):
        assert (directory / "adapter_model.safetensors").is_file()
        assert not (directory / "model.safetensors").exists()
    adapter = weights(trained / "lora_straight", "adapter_model.safetensors")
    trained_b = [value for name, value in adapter.items() if "lora_B" in name]
    assert trained_b
    assert all(value.abs().max() > 0 for value in trained_b)


def test_validation_is_the_same_sharded_and_packed(trained: Path) -> None:
    for figure in ("eval_loss", "eval_loss/held_out"):
        plain, sharded = (logged(trained / name, figure) for name in ("eval", "eval_zero3"))
        assert len(plain) == 2  # before step 1 and after step 2
        assert sharded[0] == pytest.approx(plain[0], abs=1e-5)


def test_adapters_in_both_towers(trained: Path) -> None:
    adapter = weights(trained / "both_loras", "adapter_model.safetensors")
    for tower in ("vision_model", "language_model"):
        own = [v for name, v in adapter.items() if tower in name and "lora_B" in name]
        assert own
        assert all(value.abs().max() > 0 for value in own)


@pytest.mark.parametrize("name", ["best", "best_zero3"])
def test_the_best_checkpoint_is_kept_and_is_the_result(trained: Path, name: str) -> None:
    losses = logged(trained / name, "eval_loss")
    assert len(losses) == 4
    step = losses.index(min(losses)) + 1
    assert step < 4
    checkpoints = {path.name for path in (trained / name).glob("checkpoint-*")}
    assert f"checkpoint-{step}" in checkpoints
    assert len(checkpoints) <= 2
    state = json.loads((trained / name / "trainer_state.json").read_text())
    assert state["best_global_step"] == step
    result = weights(trained / name)
    assert largest_difference(result, weights(trained / name / f"checkpoint-{step}")) == 0
    if "checkpoint-4" in checkpoints:
        last = weights(trained / name / "checkpoint-4")
        assert largest_difference(result, last) > 0


def test_bf16_on_a_cpu(trained: Path) -> None:
    assert np.isfinite(logged(trained / "bf16")).all()
    assert {str(value.dtype) for value in weights(trained / "bf16").values()} == {"torch.bfloat16"}


def test_another_global_batch_is_refused(trained: Path) -> None:
    text = (trained / "other/error.txt").read_text()
    assert text.startswith("2 ")
    assert "written with global_batch_size 8, this run has 2" in text
