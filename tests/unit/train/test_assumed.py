"""What a run is taken to mean by what it does not say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from internvl_chat.train.assumed import (
    FIXED,
    GLOBAL_BATCH_SIZE,
    Assumptions,
    Surroundings,
    as_sentences,
    assume,
    output_dir_of,
)
from internvl_chat.train.flags import lora_flags, trainable_flags
from tests.pins.recipes import RECIPES, run_recipe


def assumed(
    given: dict[str, Any],
    *,
    carried: tuple[int, int] = (0, 0),
    world_size: int = 1,
    on_gpu: bool = False,
    has_bf16: bool = True,
    num_cpus: int = 8,
) -> Assumptions:
    return assume(
        given,
        Surroundings(world_size=world_size, on_gpu=on_gpu, has_bf16=has_bf16, num_cpus=num_cpus),
        carried=carried,
        trainable_flags=trainable_flags(),
        lora_flags=lora_flags(),
    )


def told(given: dict[str, Any], **around: Any) -> tuple[str, ...]:
    found = assumed(given, **around)
    return as_sentences(found, {**found.values, **given}, given)


WHOLE = {"model_name_or_path": "m"}
PARTS = {"vision_path": "v", "llm_path": "l"}
FREEZING = ("freeze_llm", "freeze_mlp", "freeze_backbone")


@pytest.mark.parametrize(
    ("given", "frozen", "rank", "rate"),
    [
        (WHOLE, (True, True, True), 16, 1e-4),
        ({**WHOLE, "use_llm_lora": 64}, (True, True, True), 64, 1e-4),
        ({**WHOLE, "use_backbone_lora": 8}, (True, True, True), 0, 1e-4),
        ({**WHOLE, "use_llm_lora": 0}, (False, False, True), 0, 1e-5),
        ({**WHOLE, "load_in_4bit": True}, (True, True, True), 16, 1e-4),
        ({**WHOLE, "lora_dropout": 0.1, "unfreeze_lm_head": True}, (True, True, True), 16, 1e-5),
        ({**WHOLE, "freeze_backbone": True}, (False, False, True), 0, 1e-5),
        ({**WHOLE, "freeze_llm": True, "freeze_backbone": True}, (True, False, True), 0, 1e-4),
        ({**WHOLE, "use_llm_lora": 8, "freeze_mlp": False}, (True, False, True), 8, 1e-4),
        ({**WHOLE, "use_llm_lora": 8, "unfreeze_vit_layers": -2}, (True, True, True), 8, 1e-5),
        (PARTS, (True, False, True), 16, 1e-4),
        ({**WHOLE, "mlp_lr": 1e-3}, (True, False, True), 16, 1e-4),
        ({**WHOLE, "vision_lr": 1e-6, "use_llm_lora": 4}, (True, True, False), 4, 1e-5),
        ({**WHOLE, "vision_lr": 1e-6, "use_llm_lora": 0}, (False, False, False), 0, 1e-5),
        ({**WHOLE, "vision_lr": 1e-6, "use_backbone_lora": 4}, (True, True, True), 0, 1e-4),
        # What asks for nothing says nothing.
        ({**WHOLE, "use_backbone_lora": 0}, (True, True, True), 16, 1e-4),
        ({**WHOLE, "unfreeze_lm_head": False}, (True, True, True), 16, 1e-4),
        ({**WHOLE, "unfreeze_vit_layers": 0}, (True, True, True), 16, 1e-4),
        ({**WHOLE, "vit_layer_decay_rate": 1.0}, (True, True, True), 16, 1e-4),
        ({**WHOLE, "use_llm_lora": 0, "use_backbone_lora": 0}, (False, False, True), 0, 1e-5),
    ],
)
def test_what_trains(
    given: dict[str, Any], frozen: tuple[bool, ...], rank: int, rate: float
) -> None:
    values = {**assumed(given).values, **given}
    assert tuple(values.get(name, False) for name in FREEZING) == frozen
    assert values.get("use_llm_lora", 0) == rank
    assert values["learning_rate"] == rate


def test_what_trains_is_told_in_a_sentence() -> None:
    assert told(WHOLE)[0] == (
        "what trains: LoRA of rank 16 on the LLM; "
        "--use_llm_lora 0 trains LLM and projector whole instead"
    )
    assert told(PARTS)[0].startswith("what trains: LoRA of rank 16 on the LLM, the projector;")
    assert told({**WHOLE, "use_llm_lora": 0})[0] == "what trains: the LLM, the projector"
    assert "LLM, lm_head whole;" in told({**WHOLE, "modules_to_save": ["lm_head"]})[0]


def test_what_is_assumed_is_listed_as_the_run_has_it() -> None:
    listed = told({"save_strategy": "epoch", "max_steps": -1})[1]
    for name in ("--save_total_limit 1", "--num_train_epochs 1"):
        assert name in listed
    assert not {"--save_steps", "--use_llm_lora"} & set(listed.split())
    listed = told({"save_strategy": "no", "max_steps": 9})[1]
    assert not {"--save_total_limit", "--num_train_epochs"} & set(listed.split())
    found = assumed({})  # another rule of the arguments has the last word
    assert "--save_steps 7" in as_sentences(found, {**found.values, "save_steps": 7.0}, {})[1]


def test_an_adapter_goes_on() -> None:
    found = assumed(WHOLE, carried=(4, 8))
    assert (found.values["use_llm_lora"], found.values["use_backbone_lora"]) == (4, 8)
    assert as_sentences(found, found.values, WHOLE)[0] == (
        "what trains: LoRA of rank 4 on the LLM, LoRA of rank 8 on the vision tower, which goes on "
        "with the checkpoint's"
    )


@pytest.mark.parametrize(
    ("given", "world_size", "accumulation"),
    [({}, 1, 4), ({}, 2, 2), ({}, 16, 1)],
)
def test_accumulation_keeps_the_global_batch(
    given: dict[str, Any], world_size: int, accumulation: int
) -> None:
    values = {**assumed(given, world_size=world_size).values, **given}
    assert values["gradient_accumulation_steps"] == accumulation
    micro = values["per_device_train_batch_size"]
    assert micro * world_size * accumulation == max(GLOBAL_BATCH_SIZE, micro * world_size)


def test_a_batch_size_that_is_given_is_not_accumulated() -> None:
    values = assumed({"per_device_train_batch_size": 1}).values
    assert "gradient_accumulation_steps" not in values
    assert "gradient_accumulation_steps" not in assumed({"gradient_accumulation_steps": 2}).values


def test_what_the_machine_decides() -> None:
    assert assumed({}).values["bf16"] is False
    gpu = assumed({}, on_gpu=True, world_size=4).values
    assert (gpu["bf16"], gpu["dataloader_num_workers"]) == (True, 4)
    assert assumed({}, on_gpu=True, num_cpus=2).values["dataloader_num_workers"] == 2
    assert assumed({}, on_gpu=True, has_bf16=False).values["bf16"] is False
    assert assumed({"fp16": True}, on_gpu=True).values["bf16"] is False
    assert assumed({"load_in_4bit": True}).values["bf16"] is True


def test_nothing_that_is_given_is_assumed() -> None:
    given = dict.fromkeys((*FIXED, "learning_rate", "bf16", *FREEZING))
    given["per_device_train_batch_size"] = 2
    assert not given.keys() & assumed(given).values.keys()


def test_the_recipes_start_what_assumes_nothing() -> None:
    for recipe in RECIPES:
        line = run_recipe(recipe, {"GPUS": "2", "BATCH_SIZE": "16"}, []).stdout.split()
        assert line[line.index("internvl_chat/train/finetune.py") + 1].startswith("--")


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_dir_of("configs/mine.v2.yaml", {}) == "work_dirs/mine.v2"
    assert output_dir_of(None, {"model_name_or_path": "a/b/"}) == "work_dirs/b_tuned"
    assert output_dir_of(None, {"vision_path": "v", "llm_path": "org/l"}) == "work_dirs/l_tuned"
    assert output_dir_of(None, {}) == "work_dirs/run_tuned"
    for name in ("org/l", "org/l@refs/pr/1", "hf://org/l@main", "models/l/.", "l/"):
        assert output_dir_of(None, {"model_name_or_path": name}) == "work_dirs/l_tuned"
    assert output_dir_of(None, {"model_name_or_path": "."}) == f"work_dirs/{tmp_path.name}_tuned"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = f"hub/models--org--l/snapshots/{'0' * 40}"
    assert output_dir_of(None, {"model_name_or_path": kept}) == "work_dirs/l_tuned"
    (tmp_path / "mine").symlink_to(tmp_path / kept)  # a link is named on purpose
    assert output_dir_of(None, {"model_name_or_path": "mine"}) == "work_dirs/mine_tuned"
    # Never what the run reads.
    model = {"model_name_or_path": os.path.abspath("work_dirs/mine")}
    assert output_dir_of("mine.yaml", model) == "work_dirs/mine_tuned"
