"""Bytes that ranks hold right before an optimizer step, for several runs in one set of processes.

``torchrun … memory_worker.py cases.json results.json``: cases are argument lists. A result is the
largest rank's bytes of all tensors that are alive, each storage once, at the second step; and those
of the buckets into which ZeRO-1 and 2 copy gradients, which are gone by then.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from internvl_chat.train.distributed import DistributedState, init_distributed, shut_down
from internvl_chat.train.finetune import run
from internvl_chat.train.parsing import parse
from internvl_chat.train.reports import set_up_logging
from internvl_chat.train.signals import EndingSignals
from internvl_chat.train.status import RunStatus


def bytes_alive() -> int:
    """Of all tensors that Python knows, each storage once."""
    gc.collect()
    sizes = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and not one.is_meta:
            gradient = one.grad if one.is_leaf else None
            for tensor in (one, gradient):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


class Measured:
    """The figures of one run."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.buckets = 0

    def before_step(self, *args: Any) -> None:
        """A hook."""
        self.held.append(bytes_alive())

    def measuring(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A DeepSpeed engine's step, with a look before it."""

        def stepping(engine: Any, *args: Any, **kwargs: Any) -> Any:
            if engine.is_gradient_accumulation_boundary():
                self.before_step()
            return step(engine, *args, **kwargs)

        return stepping

    def noting(self, setup: Callable[..., Any]) -> Callable[..., Any]:
        """``setup_buckets``, with the size of what it makes."""

        def making(optimizer: Any) -> None:
            setup(optimizer)
            buffers = [one for bucket in optimizer.ipg_buckets.values() for one in bucket.buffer]
            self.buckets = sum(one.numel() * one.element_size() for one in buffers)

        return making


def run_case(argv: list[str], state: DistributedState) -> dict[str, int]:
    """One run in the process group that is already there."""
    unset_hf_deepspeed_config()  # of the case before; a run of its own starts without
    measured = Measured()
    gc.collect()
    before = bytes_alive()
    args = parse(argv, device=state.device)
    hook = None
    if not args.train.deepspeed:
        hook = register_optimizer_step_pre_hook(measured.before_step)
    step, setup = DeepSpeedEngine.step, DeepSpeedZeroOptimizer.setup_buckets
    with (
        patch.object(DeepSpeedEngine, "step", measured.measuring(step)),
        patch.object(DeepSpeedZeroOptimizer, "setup_buckets", measured.noting(setup)),
    ):
        # Status and signals belong to the entry point, one for each process.
        run(args, state, RunStatus("", rank=state.rank), EndingSignals(lambda number: None))
    if hook is not None:
        hook.remove()
    figures = torch.tensor([measured.held[1] - before, measured.buckets])
    if state.world_size > 1:
        dist.all_reduce(figures, op=dist.ReduceOp.MAX)
    del args
    gc.collect()
    return {"held": int(figures[0]), "buckets": int(figures[1]), "before": before}


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    deepspeed = any("--deepspeed" in argv for argv in cases.values())
    state = init_distributed(timeout_seconds=300, deepspeed=deepspeed)
    set_up_logging(state)
    results = {name: run_case(argv, state) for name, argv in cases.items()}
    if state.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    shut_down()


if __name__ == "__main__":
    main()
