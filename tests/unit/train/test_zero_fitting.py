"""``--deepspeed auto`` on a machine, in a folder, for a model; and a word about ZeRO-3."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.errors import ConfigError
from internvl_chat.train import planning, zero_fitting
from internvl_chat.train.distributed import DistributedState
from internvl_chat.train.finetune import main
from internvl_chat.train.fused_norms import FusedRMSNorm
from internvl_chat.train.parsing import ReadArguments, as_run, read_arguments
from internvl_chat.train.planned_machine import planned_machine
from internvl_chat.train.planned_run import PlannedRun, planned_anew
from internvl_chat.train.planning import plan_run
from internvl_chat.train.zero_choice import ZeroRoom
from internvl_chat.train.zero_fitting import lower_stage, room_of, settle_zero, zero_for
from tests.support.meta_models import LORA, meta_model
from tests.support.models import make_model
from tests.support.training import train_arguments, write_dataset, write_tiny_chat_model

ALONE = DistributedState(
    launcher="single",
    rank=0,
    local_rank=0,
    world_size=1,
    backend=None,
    device=torch.device("cpu"),
    master=None,
    notes=(),
)
FOUR = replace(ALONE, launcher="pytorch", world_size=4, backend="gloo")
HALF = ("--bf16", "True")
WIDE = {"llm": {"hidden_size": 64, "intermediate_size": 256}}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("auto")
    model = write_tiny_chat_model(folder / "model", **WIDE)
    meta = write_dataset(folder / "data", ("text", "image", "two") * 4)
    return train_arguments(model, meta, folder / "out", deepspeed="auto", max_steps=1)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The entry point sets logging up for a process of its own."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def read(arguments: list[str], *more: str) -> ReadArguments:
    return read_arguments([*arguments, *more])


def with_memory(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(zero_fitting, "memory_gib", lambda: gib)
    monkeypatch.setattr(zero_fitting, "_PYTHON_GIB", 0.0)


def estimates(told: str) -> dict[str, float]:
    """Of the log line, in GiB."""
    listed = told.partition("estimated GiB a rank: ")[2].partition(";")[0]
    return {name: float(need) for name, need in (word.split() for word in listed.split(", "))}


def test_memory_decides(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    around = {"LOCAL_WORLD_SIZE": "4"}
    said = read(arguments)
    assert said.leaves_zero
    assert said.values["deepspeed"] is None
    assert said.given["deepspeed"] == "auto"
    with_memory(monkeypatch, 100)
    plenty = zero_for(said, FOUR, around)
    assert plenty.source is None
    needs = estimates(plenty.told)
    assert needs["none"] > needs["zero1"]
    with_memory(monkeypatch, 4 * (needs["none"] + needs["zero1"]) / 2 / 0.9)
    assert zero_for(said, FOUR, around).source == "zero1"
    assert zero_for(said, ALONE, {}).source is None  # all of it, and nobody to divide with


def test_norms_are_reckoned_as_the_device_computes_them(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run in bf16 each is one kernel on a GPU, and written out on a CPU."""
    reckoned: list[PlannedRun] = []

    def planned(*given: Any) -> PlannedRun:
        reckoned.append(planning.planned(*given))
        return reckoned[-1]

    monkeypatch.setattr(zero_fitting, "planned", planned)
    with_memory(monkeypatch, 100)
    zero_for(read(arguments, *HALF), ALONE, {})
    machine = replace(reckoned[0].machine, is_cpu=False)
    for run, fused in (
        (reckoned[0], False),
        (planning.planned(reckoned[0].read, machine), True),
        (planning.planned(read(arguments), machine), False),
        (
            planning.planned(read(arguments, *HALF, "--attn_implementation", "eager"), machine),
            False,
        ),
    ):
        assert run.setting.has_norm_kernel is not run.machine.is_cpu
        assert any(isinstance(part, FusedRMSNorm) for part in run.model.modules()) is fused
        again = planned_anew(run, {"freeze_llm": True}).model
        assert any(isinstance(part, FusedRMSNorm) for part in again.modules()) is fused


def test_what_it_comes_to_is_the_runs_file(arguments: list[str]) -> None:
    plain = as_run(read(arguments))
    assert plain.train.deepspeed is None
    assert plain.given["deepspeed"] == "auto"
    with pytest.raises(ConfigError, match="neither a file here nor one of the names"):
        as_run(read(arguments), zero="zero9")


def test_processes_join_deepspeed_when_a_stage_is_chosen(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    joined: list[float] = []

    def join(state: DistributedState, *, timeout_seconds: float) -> DistributedState:
        joined.append(timeout_seconds)
        return state

    monkeypatch.setattr(zero_fitting, "join_deepspeed", join)
    with_memory(monkeypatch, 100)
    with caplog.at_level(logging.INFO):
        assert settle_zero(read(arguments), ALONE) == (None, ALONE)
    assert "--deepspeed auto: none, the first that fits" in caplog.text
    assert joined == []
    record = {"arguments": {"deepspeed": {"zero_optimization": {"stage": 2}}}}
    monkeypatch.setattr(zero_fitting, "_checkpoint", lambda read: Path("there"))
    monkeypatch.setattr(zero_fitting, "load_record", lambda path: record)
    assert settle_zero(read(arguments), ALONE) == ("zero2", ALONE)
    assert joined == [1800.0]
    named = [word if word != "auto" else "zero1" for word in arguments]
    assert settle_zero(read(named), ALONE) == (None, ALONE)


def test_a_run_its_record_and_its_resume(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "1"]
    assert main([*arguments, *own]) == 0
    record = json.loads((tmp_path / "arguments.json").read_text())
    assert record["given"]["deepspeed"] == "auto"
    assert record["arguments"]["deepspeed"] is None
    assert "--deepspeed auto: none, the first that fits" in capsys.readouterr().err
    stage = {"zero_optimization": {"stage": 2}}
    beside = tmp_path / "checkpoint-1/arguments.json"
    again = read([*arguments, *own])
    assert "as the checkpoint to go on from" in zero_for(again, ALONE, {}).told
    # A record alone: the manifest is of the file as it was.
    record["arguments"]["deepspeed"] = stage
    beside.write_text(json.dumps(record))
    named = read([*arguments, *own, "--resume_from_checkpoint", str(beside.parent)])
    assert zero_for(named, ALONE, {}).source == "zero2"
    anew = read([*arguments, *own, "--overwrite_output_dir", "True"])
    assert zero_for(anew, ALONE, {}).source is None


def test_four_bits_need_no_stage(arguments: list[str]) -> None:
    flags = ("--load_in_4bit", "True", "--use_llm_lora", "4", "--freeze_llm", "True")
    said = read(arguments, *flags, "--freeze_backbone", "True", "--bf16", "True")
    found = zero_for(said, FOUR, {})
    assert (found.source, found.fits) == (None, True)


def test_a_plan_chooses_by_the_gpus_memory(arguments: list[str]) -> None:
    ample = plan_run(arguments, planned_machine("80", 4))
    assert ample.stage == 0
    needs = estimates(ample.notes[-1])
    between = (needs["none"] + needs["zero1"]) / 2
    short = plan_run(arguments, planned_machine(f"{(between + 0.75) / 0.9:.6f}", 4))
    assert short.stage == 1
    assert short.notes[-1].startswith("--deepspeed auto: zero1, the first that fits")


def test_the_room_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_fitting, "memory_gib", lambda: 64.0)
    assert room_of(ALONE, {"LOCAL_WORLD_SIZE": "4"}).memory_gib == 64
    assert room_of(FOUR, {"LOCAL_WORLD_SIZE": "4"}).memory_gib == 16
    monkeypatch.setattr(zero_fitting, "memory_gib", lambda: None)
    assert room_of(ALONE, {}).memory_gib == 16


def test_zero3_where_it_is_not_needed() -> None:
    model = make_model()
    zero3: dict[str, Any] = {"zero_optimization": {"stage": 3}}
    ample = ZeroRoom(memory_gib=80, beside_gib=0.75)
    line = lower_stage(model, zero3, ample, world_size=2)
    assert line is not None
    assert line.startswith("--deepspeed zero1 is faster than ZeRO-3 (measured: 0.")
    assert ", and its weights, gradients" in line
    adapter = lower_stage(meta_model("tiny", **LORA), zero3, ample, world_size=2)
    assert adapter is not None
    assert "of the speed without DeepSpeed" in adapter
    assert lower_stage(model, {"zero_optimization": {"stage": 2}}, ample, world_size=2) is None
    assert lower_stage(model, None, ample, world_size=2) is None
    tight = ZeroRoom(memory_gib=1e-4, beside_gib=0)
    assert lower_stage(model, zero3, tight, world_size=2) is None
