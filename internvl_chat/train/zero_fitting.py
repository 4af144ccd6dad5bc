"""ZeRO stages and the memory of this machine: ``--deepspeed auto``, and a word about ZeRO-3."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.manifest import list_checkpoints
from internvl_chat.costs.holdings import parameter_sizes, zero_holdings
from internvl_chat.costs.measured import Trained, zero3_share
from internvl_chat.costs.memory import CONTEXT_GIB, GIB
from internvl_chat.costs.zero_buffers import ZeroSettings
from internvl_chat.machine.hardware import memory_gib
from internvl_chat.train.distributed import DistributedState, from_rank_zero, join_deepspeed
from internvl_chat.train.parsing import ReadArguments, RunArguments, is_true
from internvl_chat.train.planned_machine import PlannedMachine
from internvl_chat.train.planning import planned
from internvl_chat.train.record import load_record
from internvl_chat.train.resuming import checkpoint_problems
from internvl_chat.train.zero import read_zero_file, stage_of
from internvl_chat.train.zero_choice import (
    AUTO_IN_FOUR_BITS,
    ZeroChoice,
    ZeroRoom,
    former_zero,
    is_auto,
)

logger = logging.getLogger(__name__)

_PYTHON_GIB = 1.0
"""What a process of training takes beside its tensors on a CPU."""
_UNKNOWN_GIB = 16.0
"""Taken for the machine's memory where the system does not tell it."""
_ACTIVATIONS = 0.3
"""Share of what is usable that is left for activations where nobody counts them."""


def settle_zero(
    read: ReadArguments, state: DistributedState
) -> tuple[str | None, DistributedState]:
    """Choose a ZeRO stage where ``--deepspeed auto`` leaves it; all ranks call it.

    Returns:
        What ``--deepspeed`` has come to, and the processes, which DeepSpeed knows then.

    Raises:
        UserError: a stage is needed, and DeepSpeed is not installed; the data are wrong.
    """
    if not read.leaves_zero:
        return None, state
    choice = from_rank_zero(state, lambda: zero_for(read, state, os.environ))
    if state.is_main:
        logger.log(logging.INFO if choice.fits else logging.WARNING, "%s", choice.told)
    if choice.source is not None:
        state = join_deepspeed(state, timeout_seconds=float(read.values["ddp_timeout"]))
    return choice.source, state


def zero_for(
    read: ReadArguments, state: DistributedState, environ: Mapping[str, str]
) -> ZeroChoice:
    """Choose the stage of a run.

    Args:
        read: its arguments.
        state: of this process; its device stands for all.
        environ: the environment that the launcher left.

    Raises:
        UserError: as :func:`plan_run`; a stage is needed, and DeepSpeed is not installed.
    """
    if read.model.load_in_4bit:
        return ZeroChoice(source=None, told=AUTO_IN_FOUR_BITS, fits=True)
    room = room_of(state, environ)
    machine = PlannedMachine(
        num_gpus=state.world_size,
        gpu=f"{room.memory_gib:.0f} GiB",
        memory_gib=room.memory_gib,
        peaks=None,
        is_cpu=state.device.type == "cpu",
    )
    return planned(read, machine).chosen(room, former=_former(read))


def lower_stage(
    model: nn.Module, config: Mapping[str, Any] | None, room: ZeroRoom, *, world_size: int
) -> str | None:
    """A word to who chose ZeRO-3 where weights, gradients and optimizer fit without it.

    Args:
        model: cut up or not, with what trains decided.
        config: the run's DeepSpeed file; None without DeepSpeed.
        room: of a rank.
        world_size: ranks.

    Returns:
        The line for the log; None where there is nothing to say.
    """
    if stage_of(config) != 3:
        return None
    sizes = parameter_sizes(model)
    total, item = sum(size.numel for size in sizes), next(model.parameters()).element_size()
    for name in ("zero1", "zero2"):
        zero = ZeroSettings.of(read_zero_file(name), num_parameters=total)
        held = zero_holdings(sizes, zero, world_size=world_size, weight_bytes=item)
        gib = (held.weights + held.gradients + held.optimizer + held.buffers) / GIB
        if gib <= room.usable_gib * (1 - _ACTIVATIONS):
            has_lora = any(names.is_lora(f".{path}") for path, _ in model.named_parameters())
            trains: Trained = "lora" if has_lora else "full"
            share = zero3_share(trains)
            much = "" if share is None else f" (measured: {share})"
            return (
                f"--deepspeed {name} is faster than ZeRO-3{much}, and its weights, gradients and "
                f"optimizer are {gib:.3g} of {room.memory_gib:.3g} GiB here: {name} if the "
                "activations fit beside them, or auto, which estimates them"
            )
    return None


def tell_of_lower_stage(args: RunArguments, state: DistributedState, model: Any) -> None:
    """Log it where a run asks for ZeRO-3 and need not."""
    config = args.train.deepspeed if isinstance(args.train.deepspeed, dict) else None
    room = room_of(state, os.environ)
    line = lower_stage(model, config, room, world_size=state.world_size)
    if line is not None and state.is_main and not is_auto(args.given.get("deepspeed")):
        logger.info("%s", line)


def room_of(state: DistributedState, environ: Mapping[str, str]) -> ZeroRoom:
    """What a rank has: of its GPU, or its share of the machine's memory."""
    if state.device.type == "cuda":
        memory = torch.cuda.get_device_properties(state.device).total_memory / 2**30
        return ZeroRoom(memory_gib=memory, beside_gib=CONTEXT_GIB)
    processes = 1 if state.backend is None else int(environ.get("LOCAL_WORLD_SIZE", "1"))
    whole = memory_gib() or _UNKNOWN_GIB
    return ZeroRoom(memory_gib=whole / processes, beside_gib=_PYTHON_GIB)


def _former(read: ReadArguments) -> str | None:
    """What the checkpoint was under that the run goes on from; None to start anew."""
    checkpoint = _checkpoint(read)
    record = None if checkpoint is None else load_record(checkpoint)
    return None if record is None else former_zero(record.get("arguments", {}))


def _checkpoint(read: ReadArguments) -> Path | None:
    """The one that ``resuming.checkpoint_to_resume`` will find, without a word about others."""
    asked = read.values["resume_from_checkpoint"]
    if asked and asked.lower() not in ("true", "false"):
        return Path(asked)
    if read.values["overwrite_output_dir"] or (asked and not is_true(asked)):
        return None
    output_dir = Path(read.values["output_dir"])
    intact = (path for path in list_checkpoints(output_dir) if not checkpoint_problems(path))
    return next(intact, None)
