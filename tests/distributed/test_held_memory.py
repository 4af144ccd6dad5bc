"""Bytes that ranks really hold, in runs of tiny models, against what a plan says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.costs.holdings import parameter_sizes
from internvl_chat.costs.memory import holdings_of
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel
from internvl_chat.train.planned_machine import planned_machine
from internvl_chat.train.planning import plan_run
from internvl_chat.train.zero import read_zero_file
from tests.support.training import ROOT, environment, torchrun, train_arguments, write_dataset

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TINY = ROOT / "pretrained/internvl-chat-tiny"
WORKER = str(ROOT / "tests/distributed/memory_worker.py")
KEPT_WHOLE = 1000
ZERO_3 = json.loads((ROOT / "shell/deepspeed/zero_stage3_config.json").read_text())
CUT_SMALL = {
    **ZERO_3,
    "zero_optimization": {
        **ZERO_3["zero_optimization"],
        "stage3_param_persistence_threshold": KEPT_WHOLE,
    },
}
"""ZeRO-3 that keeps next to nothing whole; others keep all of a tiny model."""
SETTINGS: dict[str, str | None] = {
    "plain": None,  # first: accelerate stays with DeepSpeed once it had it
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
    "zero3 cut": json.dumps(CUT_SMALL),
}
TRAINED: dict[str, dict[str, Any]] = {
    "full": {"freeze_llm": False, "freeze_mlp": False, "freeze_backbone": False},
    "lora": {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True, "use_llm_lora": 8},
}


def cases(root: Path) -> dict[str, list[str]]:
    """Argument lists by name."""
    meta = write_dataset(root / "data", ("text",) * 36)  # images would be bytes, too
    made = {}
    for setting, deepspeed in SETTINGS.items():
        for trained, arguments in TRAINED.items():
            options = {
                **arguments,
                "bf16": True,
                "max_steps": 2,
                "gradient_accumulation_steps": 2,
                "per_device_train_batch_size": 1,
                "grad_checkpoint": True,
                "force_image_size": 112,
            }
            if deepspeed is not None:
                options["deepspeed"] = deepspeed
            name = f"{trained} {setting}"
            made[name] = train_arguments(TINY, meta, root / name, **options)
    return made


def left_gathered(model: InternVLChatModel) -> int:
    """Blocks of a frozen tower: no backward pass comes by to release them, only the limit of live
    parameters, which a plan counts as gathered."""
    tower: Any = model.vision_model
    parameters = (parameter.numel() for parameter in tower.encoder.layers.parameters())
    return sum(2 * numel for numel in parameters if numel > KEPT_WHOLE)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_what_ranks_hold_before_a_step(world_size: int, tmp_path: Path) -> None:
    """Weights, gradients, the optimizer and what stays of the buffers, within 1 %."""
    runs = cases(tmp_path)
    (tmp_path / "cases.json").write_text(json.dumps(runs))
    files = [str(tmp_path / name) for name in ("cases.json", "results.json")]
    if world_size == 1:
        done = subprocess.run(
            [sys.executable, WORKER, *files],
            capture_output=True,
            text=True,
            timeout=1800,
            env=environment(),
            cwd=ROOT,
        )
    else:
        done = torchrun(WORKER, *files, processes=world_size)
    assert done.returncode == 0, done.stderr[-6000:]
    results = json.loads((tmp_path / "results.json").read_text())
    for name, argv in runs.items():
        planned = plan_run(argv, planned_machine("80", world_size))
        held = holdings_of(parameter_sizes(planned.model), planned.setting)
        gradients, buffers, buckets = held.gradients, held.buffers, 0
        if planned.stage == 1:  # a rank has let go of the others' by then
            without = replace(planned.setting, deepspeed=read_zero_file("zero2"))
            gradients = holdings_of(parameter_sizes(planned.model), without).gradients
        if planned.stage in (1, 2):
            buckets, buffers = buffers, 0  # let go of, too: counted when they are made
        if planned.setting.deepspeed is None:
            buffers = 0  # DDP's buckets are no tensors of Python
        if name == "lora zero3 cut" and world_size > 1:
            buffers += left_gathered(planned.model)
        expected = held.weights + gradients + held.optimizer + buffers
        assert results[name]["held"] == pytest.approx(expected, rel=0.01), name
        assert results[name]["buckets"] == pytest.approx(buckets, rel=0.01), name
