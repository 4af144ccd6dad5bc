"""What it takes to continue a run, kept in ``checkpoint-N/`` beside the loadable model.

The directory is complete or absent (``checkpoint.manifest``). It holds the model or adapter, the
optimizer, the scheduler, every rank's random state, the Trainer's state and, in
``data_position.json``, the place in the data order.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from internvl_chat.checkpoint.manifest import (
    Peers,
    atomic_directory,
    remove_old_checkpoints,
)
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.config import ORDER_RULE, DecodeConfig, NormalizeType
from internvl_chat.errors import CheckpointError
from internvl_chat.files import write_json
from internvl_chat.train.rates import NAMES, names_by_group, regrouped, saved_groups
from internvl_chat.train.standing import POSITION

logger = logging.getLogger(__name__)

ARGUMENTS = "arguments.json"
TRAINABLE_WEIGHTS = "trainable_weights.pt"
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
_BY_GROUP = {"min_lrs", "max_lrs", "_last_lr"}
"""What schedules that follow a figure keep for each parameter group."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What changes as a run goes on; a checkpoint is saved from it and restored into it."""

    model: nn.Module
    """Unwrapped."""
    engine: Any | None
    """DeepSpeed's, which keeps weights and optimizer; None without it."""
    optimizer: Any
    scheduler: Any
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class RunPosition:
    """Where a run stands."""

    epoch: int
    step: int
    """In the epoch; with it, the position in the data order."""
    trainer_state: TrainerState
    save_random_state: Callable[[str], None]
    """Writes this rank's random state into a directory."""


@dataclass(frozen=True, kw_only=True)
class CheckpointWriter:
    """Saves and restores a run; every method is called by all ranks."""

    tokenizer: Any
    global_batch_size: int
    normalize_type: NormalizeType
    decode: DecodeConfig
    begun_from: str | None
    """The chat checkpoint that the run starts from; None for a model of parts."""
    final_dtype: torch.dtype | None
    """Of the model at OUTPUT_DIR's root; None leaves it as it trains."""
    rank: int
    world_size: int
    num_samples: int
    """Samples of the data set: a position in its order means nothing for another one."""
    order_rule: int = ORDER_RULE
    """By which the order is made (``data/sampler.py``): a position means nothing under another."""
    stale: list[Path] = field(default_factory=list)
    """What an earlier run left and this one replaces (``--overwrite_output_dir``): removed when
    the first save is complete."""
    run_record: dict[str, Any] = field(default_factory=dict)
    """What the run was told (``train/record.py``), kept in every checkpoint; empty keeps none."""

    # ---- saving -------------------------------------------------------------------------------

    def save(
        self,
        state: TrainingState,
        output_dir: Path,
        *,
        step: int,
        position: RunPosition | None,
        limit: int | None,
        best: Path | None,
    ) -> None:
        """Write ``checkpoint-N``, then remove surplus ones.

        Args:
            state: of the run.
            output_dir: of the run.
            step: N.
            position: where the run stands, to continue from; None saves the model only.
            limit: how many checkpoints stay; None keeps all.
            best: one that stays in any case.
        """
        target = output_dir / f"checkpoint-{step}"
        peers = Peers(rank=self.rank, world_size=self.world_size, barrier=self._barrier)
        with atomic_directory(target, peers) as staging:
            self._save_files(state.model, staging, dtype=None)
            if position is not None:
                self._save_training_state(state, position, staging)
            if self.run_record and self.rank == 0:
                write_json(staging / ARGUMENTS, self.run_record)
        if self.rank == 0:
            logger.info("saved %s", target)
            self._remove_stale(but=target)
            if limit:
                remove_old_checkpoints(output_dir, limit, protect=[best] if best else [])
        self._barrier()

    def save_final(self, model: nn.Module, directory: Path) -> None:
        """Write the finished model (or adapter) into ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        self._save_files(model, directory, dtype=self.final_dtype)
        if self.rank == 0:
            self._remove_stale()
        self._barrier()

    def _remove_stale(self, but: Path | None = None) -> None:
        for path in self.stale:
            if path.is_dir() and path != but:
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
        self.stale.clear()

    def _save_files(self, model: Any, directory: Path, *, dtype: torch.dtype | None) -> None:
        save_checkpoint_files(
            model,
            self.tokenizer,
            directory,
            is_main=self.rank == 0,
            normalize_type=self.normalize_type,
            decode=self.decode,
            begun_from=self.begun_from,
            dtype=dtype,
        )

    def _save_training_state(
        self, state: TrainingState, position: RunPosition, staging: Path
    ) -> None:
        self._barrier()  # rank 0 has written the model
        if state.engine is not None:
            state.engine.save_checkpoint(
                str(staging), exclude_frozen_parameters=_has_frozen(state.model)
            )
        elif self.rank == 0:
            # Exactly the weights that train, in the dtype they train in.
            weights = {n: p.data for n, p in state.model.named_parameters() if p.requires_grad}
            torch.save(weights, staging / TRAINABLE_WEIGHTS)
            torch.save(state.optimizer.state_dict(), staging / OPTIMIZER)
        if self.rank == 0:
            for script in staging.glob("zero_to_*.py"):  # DeepSpeed's own tools, copied in
                script.unlink()
            torch.save(state.scheduler.state_dict(), staging / SCHEDULER)
            position.trainer_state.save_to_json(str(staging / TRAINER_STATE_NAME))
            place = {
                "global_step": position.trainer_state.global_step,
                "epoch": position.epoch,
                "step": position.step,
                "global_batch_size": self.global_batch_size,
                "world_size": self.world_size,
                "num_samples": self.num_samples,
                "order_rule": self.order_rule,
            }
            write_json(staging / POSITION, place)
        position.save_random_state(str(staging))

    # ---- continuing ---------------------------------------------------------------------------

    def load_weights(self, model: nn.Module, path: Path) -> None:
        """Put the trained weights back (runs without DeepSpeed), before the model is wrapped.

        Raises:
            CheckpointError: other weights train than when it was written.
        """
        saved = torch.load(path / TRAINABLE_WEIGHTS, weights_only=True, map_location="cpu")
        own = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if saved.keys() != own.keys():
            different = sorted(saved.keys() ^ own.keys())
            raise CheckpointError(
                f"other weights train than in this run: {', '.join(different[:4])}",
                where=str(path),
                fix="Give the same --freeze_*, --unfreeze_* and LoRA arguments as before.",
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])

    def load_training_state(self, state: TrainingState, path: Path, *, step: int) -> None:
        """Restore optimizer, scheduler and, under DeepSpeed, the weights.

        Args:
            state: restored in place.
            path: the checkpoint.
            step: steps that it has behind it.

        Raises:
            CheckpointError: DeepSpeed's files are of another stage or number of ranks.
        """
        base = [group.get("initial_lr", group["lr"]) for group in state.optimizer.param_groups]
        if state.engine is not None:
            loaded, _ = state.engine.load_checkpoint(
                str(path),
                load_module_strict=not _has_frozen(state.model),
                load_lr_scheduler_states=False,
            )
            if loaded is None:
                raise CheckpointError(
                    "DeepSpeed cannot read its part",
                    where=str(path),
                    fix="Continue with the same --deepspeed stage and number of ranks.",
                )
        else:
            # accelerate numbers the CPUs of several processes, which torch.load does not know.
            device = "cpu" if state.device.type == "cpu" else state.device
            optimizer = torch.load(path / OPTIMIZER, weights_only=True, map_location=device)
            load_optimizer(state.optimizer, state.model, optimizer, where=str(path))
        schedule = torch.load(path / SCHEDULER, weights_only=True)
        continue_schedule(state.scheduler, schedule, step=step, base=base)

    def _barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def _has_frozen(model: torch.nn.Module) -> bool:
    return any(not parameter.requires_grad for parameter in model.parameters())


def load_optimizer(optimizer: Any, model: nn.Module, saved: dict[str, Any], *, where: str) -> None:
    """Restore an optimizer, also one whose parameters were in other groups.

    Args:
        optimizer: of this run.
        model: whose parameters it has; unwrapped.
        saved: a ``state_dict()`` of the former run's.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: which parameters were in which group cannot be told.
    """
    is_named = any(NAMES in group for group in [*optimizer.param_groups, *saved["param_groups"]])
    if not is_named:
        optimizer.load_state_dict(saved)
        return
    has_names = any(NAMES in group for group in optimizer.param_groups)
    now = names_by_group(optimizer, model.named_parameters())
    before = saved_groups(saved, model.named_parameters())
    if before is None:
        raise CheckpointError(
            "its optimizer groups the parameters in a way of its own, which rates by part cannot "
            "continue",
            where=where,
            fix="Continue without --vision_lr, --mlp_lr, --llm_lr and --vit_layer_decay_rate.",
        )
    optimizer.load_state_dict(regrouped(saved, before, now))
    for group, names in zip(optimizer.param_groups, now, strict=True):
        if has_names:  # not every optimizer keeps what it does not know
            group[NAMES] = names


def continue_schedule(
    scheduler: Any, saved: dict[str, Any], *, step: int, base: Sequence[float] | None = None
) -> None:
    """Go on with a learning rate schedule at the step where a checkpoint was written.

    The rate is this run's: its ``--learning_rate`` times its schedule at that step, which is the
    checkpoint's own rate, bit for bit, where neither these nor the number of steps have changed.
    The checkpoint's optimizer brings the rate at which the former run stopped, which is 0 at the
    end of most schedules.

    Args:
        scheduler: freshly made for this run; its optimizer has been restored already.
        saved: state of the former run's scheduler, maybe of another kind or number of groups.
        step: steps done.
        base: this run's rates by group, before the schedule; None for the optimizer's own.
    """
    inner = getattr(scheduler, "scheduler", scheduler)  # accelerate and DeepSpeed wrap it
    groups = inner.optimizer.param_groups
    if not isinstance(inner, LambdaLR):
        if saved.keys() == inner.state_dict().keys():  # one that follows a figure: its memory
            limits = {key: saved[key] for key in saved if key in _BY_GROUP}
            fits = all(len(values) == len(groups) for values in limits.values())
            scheduler.load_state_dict({k: v for k, v in saved.items() if fits or k not in limits})
        else:
            own_rate = inner.optimizer.defaults["lr"]
            for group, rate in zip(groups, base or [own_rate] * len(groups), strict=True):
                group["lr"] = rate
        return
    own = {"base_lrs": list(inner.base_lrs), "last_epoch": step, "_step_count": step + 1}
    if "lr_lambdas" in saved:
        # One schedule over all groups, however many there were.
        scheduler.load_state_dict({**saved, "lr_lambdas": saved["lr_lambdas"][:1] * len(groups)})
        own["last_epoch"], own["_step_count"] = inner.last_epoch, inner._step_count
    inner.__dict__.update(own)
    rates = [
        base * multiplier(inner.last_epoch)
        for base, multiplier in zip(inner.base_lrs, inner.lr_lambdas, strict=True)
    ]
    for group, first, rate in zip(groups, inner.base_lrs, rates, strict=True):
        group["initial_lr"], group["lr"] = first, rate
    inner._last_lr = rates
