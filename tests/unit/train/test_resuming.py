"""From where a run goes on: positions, schedules, the optimizer's form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler

from internvl_chat.checkpoint.manifest import atomic_directory
from internvl_chat.config import ORDER_RULE, DecodeConfig
from internvl_chat.errors import CheckpointError
from internvl_chat.train.checkpoints import (
    OPTIMIZER,
    POSITION,
    SCHEDULER,
    CheckpointWriter,
    TrainingState,
    continue_schedule,
)
from internvl_chat.train.record import (
    ARGUMENTS,
    RESULTS,
    compared,
    continued,
    damage_of_model,
    finish_record,
    finished_step,
    load_record,
    record_of_finished_model,
    write_record,
)
from internvl_chat.train.rerun import Earlier
from internvl_chat.train.resuming import (
    RunStart,
    checkpoint_problems,
    newest_valid,
    require_same_form,
    require_same_order,
    tell,
)

PLACE = {"global_step": 2, "epoch": 0, "step": 2, "global_batch_size": 4, "num_samples": 9}


def trained(rate: float, steps: int, total: int, kind: str = "linear") -> tuple[Any, Any]:
    """An optimizer and its schedule after so many steps."""
    optimizer = torch.optim.AdamW(nn.Linear(2, 1).parameters(), lr=rate)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=total)
    for _ in range(steps):
        optimizer.step()
        scheduler.step(**({"metrics": 1.0} if kind == "reduce_lr_on_plateau" else {}))
    return optimizer, scheduler


def resumed(
    before: tuple[Any, Any], rate: float, total: int, step: int, kind: str = "linear"
) -> tuple[Any, Any]:
    """The same, of a run that goes on from there with its own arguments."""
    optimizer, scheduler = trained(rate, 0, total, kind)
    optimizer.load_state_dict(before[0].state_dict())
    continue_schedule(scheduler, before[1].state_dict(), step=step)
    return optimizer, scheduler


def rates(run: tuple[Any, Any], steps: int) -> list[float]:
    """Of the next steps."""
    found = []
    for _ in range(steps):
        found.append(run[0].param_groups[0]["lr"])
        run[0].step()
        run[1].step()
    return found


def test_the_same_schedule_goes_on_bit_for_bit() -> None:
    whole = rates(trained(1e-3, 0, 7, "cosine"), 7)
    for step in range(7):
        run = resumed(trained(1e-3, step, 7, "cosine"), 1e-3, 7, step, "cosine")
        assert rates(run, 7 - step) == whole[step:]


def test_a_longer_schedule_or_another_rate_counts_from_the_next_step_on() -> None:
    ended = trained(1e-3, 4, 4)
    assert ended[0].param_groups[0]["lr"] == 0
    assert rates(resumed(ended, 1e-3, 8, 4), 4) == rates(trained(1e-3, 0, 8), 8)[4:]
    assert rates(resumed(ended, 1e-6, 8, 4), 4) == rates(trained(1e-6, 0, 8), 8)[4:]
    run = resumed(ended, 1e-6, 8, 4, "cosine")
    assert rates(run, 4) == rates(trained(1e-6, 0, 8, "cosine"), 8)[4:]
    assert run[1].get_last_lr() == [run[0].param_groups[0]["lr"]]


def test_between_schedules_of_other_kinds() -> None:
    plateau = trained(1e-3, 2, 8, "reduce_lr_on_plateau")
    assert isinstance(plateau[1], ReduceLROnPlateau)
    assert rates(resumed(plateau, 1e-4, 8, 2), 6) == rates(trained(1e-4, 0, 8), 8)[2:]
    run = resumed(trained(1e-3, 4, 4), 1e-4, 8, 4, "reduce_lr_on_plateau")
    assert run[0].param_groups[0]["lr"] == 1e-4
    plateau[1].num_bad_epochs = 3
    run = resumed(plateau, 1e-4, 8, 2, "reduce_lr_on_plateau")
    assert run[1].num_bad_epochs == 3
    assert run[0].param_groups[0]["lr"] == 1e-3


def test_the_cpus_of_several_processes_have_numbers(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer, scheduler = trained(1e-3, 2, 4)
    torch.save(optimizer.state_dict(), tmp_path / OPTIMIZER)
    torch.save(scheduler.state_dict(), tmp_path / SCHEDULER)
    writer = CheckpointWriter(
        tokenizer=None,
        global_batch_size=4,
        normalize_type="imagenet",
        begun_from=None,
        decode=DecodeConfig.as_shown(),
        final_dtype=None,
        rank=1,
        world_size=2,
        num_samples=9,
    )
    state = TrainingState(
        model=model,
        engine=None,
        optimizer=optimizer,
        scheduler=scheduler,
        device=torch.device("cpu", 1),
    )
    writer.load_training_state(state, tmp_path, step=2)
    assert scheduler.last_epoch == 2


def write_checkpoint(target: Path, place: Any = PLACE) -> Path:
    with atomic_directory(target) as staging:
        (staging / "model.safetensors").write_text("weights")
        if place is not None:
            (staging / POSITION).write_text(json.dumps(place))
    return target


@pytest.mark.parametrize(
    "place",
    [
        None,
        [],
        {},
        {**PLACE, "global_step": "2"},
        {**PLACE, "num_samples": 9.0},
        {k: v for k, v in PLACE.items() if k != "global_batch_size"},
    ],
)
def test_a_checkpoint_without_its_place_in_the_data_is_passed_over(
    tmp_path: Path, place: Any
) -> None:
    good = write_checkpoint(tmp_path / "checkpoint-1")
    bad = write_checkpoint(tmp_path / "checkpoint-2", place)
    assert POSITION in checkpoint_problems(bad)[0]
    assert newest_valid(tmp_path) == good
    assert newest_valid(tmp_path / "nowhere") is None


ZERO_1, ZERO_3 = ({"zero_optimization": {"stage": stage}} for stage in (1, 3))


@pytest.mark.parametrize(
    ("then", "ranks_then", "now", "ranks", "told"),
    [
        (None, 2, None, 4, ""),
        (ZERO_1, 2, ZERO_1, 2, ""),
        (None, 2, ZERO_1, 2, "under no DeepSpeed, this one is under DeepSpeed"),
        (ZERO_1, 2, None, 2, "under DeepSpeed, this one is under no DeepSpeed"),
        (ZERO_1, 2, ZERO_3, 2, "under DeepSpeed ZeRO-1 on 2 ranks, this one is under ZeRO-3 on 2"),
        (ZERO_1, 2, ZERO_1, 4, "under DeepSpeed ZeRO-1 on 2 ranks, this one is under ZeRO-1 on 4"),
    ],
)
def test_the_form_of_the_optimizers_files(
    tmp_path: Path, then: Any, ranks_then: int, now: Any, ranks: int, told: str
) -> None:
    (tmp_path / ("latest" if then else OPTIMIZER)).write_text("")
    record = {"arguments": {"deepspeed": then}}
    (tmp_path / ARGUMENTS).write_text(json.dumps(record))
    start = RunStart(
        record=record,
        earlier=Earlier(),
        checkpoint=tmp_path,
        position={**PLACE, "world_size": ranks_then},
    )
    args: Any = SimpleNamespace(train=SimpleNamespace(deepspeed=now, deepspeed_plugin=now))
    if not told:
        require_same_form(start, args, ranks)
        return
    with pytest.raises(CheckpointError) as caught:
        require_same_form(start, args, ranks)
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


# ---- arguments.json -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "rule"), [({}, 1), ({"order_rule": 1}, 1), ({"order_rule": ORDER_RULE}, ORDER_RULE)]
)
def test_a_run_goes_on_under_the_order_that_it_began_with(
    place: dict[str, int], rule: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = RunStart(
        record={"global_batch_size": 4, "arguments": {}},
        earlier=Earlier(),
        checkpoint=tmp_path,
        position={**PLACE, **place},
    )
    assert start.order_rule == rule
    require_same_order(start, 9)
    with caplog.at_level("INFO"):
        tell(start, "go on", 5, str(tmp_path))
    warned = [r.getMessage() for r in caplog.records if "no sample comes twice" in r.getMessage()]
    assert len(warned) == (rule != ORDER_RULE)
    anew = RunStart(record={}, earlier=Earlier(), checkpoint=None, position={})
    assert anew.order_rule == ORDER_RULE


@pytest.mark.parametrize(
    ("place", "begin"),
    [
        ({}, (0, 0)),
        ({"global_step": 9, "epoch": 3, "step": 1}, (3, 8)),
        ({"global_step": 9, "epoch": 3, "step": 0}, (3, 9)),
        ({"global_step": 9, "epoch": 9, "step": 1}, None),  # nine epochs are nine steps
        ({"global_step": 9, "epoch": 0, "step": 1}, None),
        ({"global_step": 9, "epoch": 1, "step": 9}, None),
        ({"global_step": 9, "epoch": 1, "step": -1}, None),
    ],
)
def test_where_the_epoch_of_a_checkpoint_began(
    place: dict[str, int], begin: tuple[int, int] | None, tmp_path: Path
) -> None:
    position = {**PLACE, **place}
    start = RunStart(record={}, earlier=Earlier(), checkpoint=tmp_path, position=position)
    assert start.epoch_begin == begin
    del position["epoch"]
    assert start.epoch_begin is None


def test_an_order_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    start = RunStart(
        record={"global_batch_size": 4},
        earlier=Earlier(),
        checkpoint=tmp_path,
        position={**PLACE, "order_rule": ORDER_RULE + 1},
    )
    with pytest.raises(CheckpointError, match=f"rule {ORDER_RULE + 1} of the data's order"):
        require_same_order(start, 9)


def told(**arguments: Any) -> dict[str, Any]:
    return {"arguments": arguments, "given": arguments, "contents": {}, "global_batch_size": 4}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text('{"given": {}}'),
        lambda path: path.write_text('{"arguments": []}'),
        lambda path: path.write_text('{"arguments": {}, "given": 1}'),
        lambda path: path.write_text('{"arguments": {}, "global_batch_size": "4"}'),
    ],
)
def test_a_record_that_is_damaged_is_none(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_record(tmp_path, told(seed=1))
    assert load_record(tmp_path) == told(seed=1)
    damage(tmp_path / ARGUMENTS)
    assert load_record(tmp_path) is None
    assert record_of_finished_model(tmp_path) is None
    shutil.rmtree(tmp_path)
    assert load_record(tmp_path) is None


def test_no_damage_of_a_record_stops_a_run(tmp_path: Path) -> None:
    entry = {"name": "a", "root": "data", "records": 2, "records_sha256": "ab", "repeat_time": 1}
    record = {
        **told(seed=1, learning_rate=1e-3, meta_path="a.json", eval_meta_path=None, deepspeed=None),
        "contents": {"meta_path": [entry], "model_name_or_path": "ab"},
        "earlier": [{"arguments": {"seed": 0}, "from_step": 0}],
        "from_step": 2,
        "tensorboard": "20250101-000000",
    }
    write_record(tmp_path, record)
    whole = (tmp_path / ARGUMENTS).read_bytes()
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (tmp_path / ARGUMENTS).write_bytes(flipped)
        known = load_record(tmp_path)
        compared(known, record)
        continued(record, known, 3)
    for content in ([1, 2], "ab", {"a": 1}, None, 7):
        odd = {**record, "contents": {"meta_path": content}, "earlier": content}
        compared(odd, record)
        assert continued({**record, "arguments": {"seed": 9}}, odd, 3)["earlier"]


def write_finished_model(folder: Path, kind: str = "model") -> Path:
    """What tells that a run of 6 steps is finished; returns the file of weights."""
    config = "config.json" if kind == "model" else "adapter_config.json"
    (folder / config).write_text("{}")
    (folder / RESULTS).write_text('{"global_step": 6}')
    weights = folder / f"{kind}.safetensors"
    save_file({"weight": torch.zeros(4)}, weights)
    return weights


@pytest.mark.parametrize("kind", ["model", "adapter_model"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: [config.write_text("{") for config in path.parent.glob("*config.json")],
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\2" + bytes(7) + b"[]"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"[4]", b"{4}")),
        lambda path: path.write_bytes(path.read_bytes().replace(b"[4]", b'"4"')),
    ],
)
def test_a_model_without_whole_weights_is_not_finished(
    tmp_path: Path, damage: Callable[[Path], object], kind: str
) -> None:
    weights = write_finished_model(tmp_path, kind)
    assert (finished_step(tmp_path), damage_of_model(tmp_path)) == (6, None)
    damage(weights)
    assert finished_step(tmp_path) is None
    assert str(tmp_path) in str(damage_of_model(tmp_path))


def test_the_last_checkpoint_tells_what_a_finished_model_was_told(tmp_path: Path) -> None:
    write_finished_model(tmp_path)
    for step in (4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_record(tmp_path / f"checkpoint-{step}", told(seed=step))
    for lost in (None, "{}"):
        if lost is not None:
            (tmp_path / ARGUMENTS).write_text(lost)
        assert record_of_finished_model(tmp_path) == told(seed=6)


@pytest.mark.parametrize("results", ["{", "[]", "{}", '{"global_step": "6"}', "null"])
def test_results_that_are_damaged_are_none(tmp_path: Path, results: str) -> None:
    write_finished_model(tmp_path)
    assert finished_step(tmp_path) == 6
    (tmp_path / RESULTS).write_text(results)
    assert finished_step(tmp_path) is None


def test_the_record_of_a_finished_model_stays_until_there_is_another(tmp_path: Path) -> None:
    write_record(tmp_path, told(seed=1))
    finish_record(tmp_path, told(seed=1))
    write_finished_model(tmp_path)
    write_record(tmp_path, told(seed=2))  # begins, and is killed
    write_record(tmp_path, told(seed=3))  # so is this one
    assert load_record(tmp_path)["arguments"] == {"seed": 3}  # type: ignore[index]
    assert record_of_finished_model(tmp_path) == told(seed=1)
    finish_record(tmp_path, told(seed=3))
    assert record_of_finished_model(tmp_path) == told(seed=3)


def test_what_was_told_up_to_a_step() -> None:
    first = continued(told(learning_rate=1.0), None, 0)
    assert (first["from_step"], first["resumed_at"], first["earlier"]) == (0, 0, [])
    same = continued(told(learning_rate=1.0), first, 3)
    assert (same["from_step"], same["resumed_at"], same["earlier"]) == (0, 3, [])
    other = continued(told(learning_rate=0.5), same, 5)
    assert (other["from_step"], other["resumed_at"]) == (5, 5)
    assert [part["arguments"] for part in other["earlier"]] == [{"learning_rate": 1.0}]
    third = continued(told(learning_rate=0.25), other, 7)
    assert [part["from_step"] for part in third["earlier"]] == [0, 5]
    anew = continued(told(learning_rate=0.25), other, 0)
    assert anew["earlier"] == []
