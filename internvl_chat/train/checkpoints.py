"""What it takes to continue a run, kept in ``checkpoint-N/`` beside the loadable model.

The directory is complete or absent (``checkpoint.manifest``). It holds the model or adapter, the
optimizer, the scheduler, every rank's random state, the Trainer's state and, in
``data_position.json``, the place in the data order.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from internvl_chat.checkpoint.manifest import (
    Peers,
    atomic_directory,
    clear_leftovers,
    list_checkpoints,
    remove_old_checkpoints,
    verify_manifest,
)
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.errors import CheckpointError
from internvl_chat.files import write_json
from internvl_chat.model.constants import NormalizeType

if TYPE_CHECKING:
    from internvl_chat.train.trainer import InternVLTrainer

logger = logging.getLogger(__name__)

POSITION = "data_position.json"
TRAINABLE_WEIGHTS = "trainable_weights.pt"


@dataclass(frozen=True, kw_only=True)
class CheckpointWriter:
    """Saves and restores a run; every method is called by all ranks."""

    tokenizer: Any
    global_batch_size: int
    normalize_type: NormalizeType
    final_dtype: torch.dtype | None
    """Of the model at OUTPUT_DIR's root; None leaves it as it trains."""
    rank: int
    world_size: int
    num_samples: int
    """Samples of the data set: a position in its order means nothing for another one."""
    stale: list[Path] = field(default_factory=list)
    """What an earlier run left and this one replaces (``--overwrite_output_dir``): removed when
    the first save is complete."""

    # ---- saving -------------------------------------------------------------------------------

    def save(self, trainer: InternVLTrainer) -> None:
        """Write ``checkpoint-N`` for the step the trainer stands at, then remove surplus ones."""
        output_dir = Path(trainer.args.output_dir)
        target = output_dir / f"checkpoint-{trainer.state.global_step}"
        peers = Peers(rank=self.rank, world_size=self.world_size, barrier=self._barrier)
        with atomic_directory(target, peers) as staging:
            self._save_files(trainer, staging, dtype=None)
            if not trainer.args.save_only_model:
                self._save_training_state(trainer, staging)
        if self.rank == 0:
            logger.info("saved %s", target)
            self._remove_stale(but=target)
            if trainer.args.save_total_limit:
                best = trainer.state.best_model_checkpoint
                remove_old_checkpoints(
                    output_dir,
                    trainer.args.save_total_limit,
                    protect=[Path(best)] if best else [],
                )
        self._barrier()

    def save_final(self, trainer: InternVLTrainer, directory: str) -> None:
        """Write the finished model (or adapter) into ``directory``."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._save_files(trainer, Path(directory), dtype=self.final_dtype)
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

    def _save_files(
        self, trainer: InternVLTrainer, directory: Path, *, dtype: torch.dtype | None
    ) -> None:
        save_checkpoint_files(
            trainer.model,
            self.tokenizer,
            directory,
            is_main=self.rank == 0,
            normalize_type=self.normalize_type,
            dtype=dtype,
        )

    def _save_training_state(self, trainer: InternVLTrainer, staging: Path) -> None:
        self._barrier()  # rank 0 has written the model
        if trainer.is_deepspeed_enabled:
            trainer.model_wrapped.save_checkpoint(
                str(staging), exclude_frozen_parameters=_has_frozen(trainer.model)
            )
        elif self.rank == 0:
            # Exactly the weights that train, in the dtype they train in.
            weights = {n: p.data for n, p in trainer.model.named_parameters() if p.requires_grad}
            torch.save(weights, staging / TRAINABLE_WEIGHTS)
            torch.save(trainer.optimizer.state_dict(), staging / "optimizer.pt")
        if self.rank == 0:
            for script in staging.glob("zero_to_*.py"):  # DeepSpeed's own tools, copied in
                script.unlink()
            torch.save(trainer.lr_scheduler.state_dict(), staging / "scheduler.pt")
            _export_callbacks(trainer)
            trainer.state.save_to_json(str(staging / TRAINER_STATE_NAME))
            epoch, step = trainer.position()
            position = {
                "global_step": trainer.state.global_step,
                "epoch": epoch,
                "step": step,
                "global_batch_size": self.global_batch_size,
                "world_size": self.world_size,
                "num_samples": self.num_samples,
            }
            write_json(staging / POSITION, position)
        trainer._save_rng_state(str(staging))

    # ---- continuing ---------------------------------------------------------------------------

    def newest_valid(self, output_dir: str) -> Path | None:
        """The newest checkpoint of a run that verifies; damaged ones are reported, not used."""
        if self.rank == 0 and Path(output_dir).is_dir():
            clear_leftovers(Path(output_dir))
        self._barrier()
        for path in list_checkpoints(Path(output_dir)):
            problems = self.problems(path)
            if not problems:
                return path
            if self.rank == 0:
                logger.warning("passing over %s: %s", path, "; ".join(problems[:3]))
        return None

    def problems(self, path: Path) -> list[str]:
        """What is wrong with a checkpoint, the same list on every rank; empty if it verifies."""
        found: list[Any] = [None]
        if self.rank == 0:
            found = [verify_manifest(path)]
            if not found[0] and not (path / POSITION).is_file():
                found = [[f"no {POSITION}: saved without what it takes to continue"]]
        if self.world_size > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def require_same_order(self, path: Path) -> None:
        """Check that the data position of a checkpoint means the same in this run.

        Raises:
            CheckpointError: it was written with another global batch size or other data.
        """
        position = json.loads((path / POSITION).read_text("utf-8"))
        for name, now in (
            ("global_batch_size", self.global_batch_size),
            ("num_samples", self.num_samples),
        ):
            if position[name] != now:
                raise CheckpointError(
                    f"written with {name} {position[name]}, this run has {now}: its position in "
                    "the data would be another",
                    where=str(path),
                    fix="Continue with the same batch and data, or start anew with "
                    "--overwrite_output_dir True and this checkpoint as --model_name_or_path.",
                )

    def load_weights(self, trainer: InternVLTrainer, path: str) -> None:
        """Put the trained weights back (runs without DeepSpeed), before the model is wrapped.

        Raises:
            CheckpointError: other weights train than when it was written.
        """
        saved = torch.load(Path(path) / TRAINABLE_WEIGHTS, weights_only=True, map_location="cpu")
        own = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        if saved.keys() != own.keys():
            different = sorted(saved.keys() ^ own.keys())
            raise CheckpointError(
                f"other weights train than in this run: {', '.join(different[:4])}",
                where=path,
                fix="Give the same --freeze_*, --unfreeze_* and LoRA arguments as before.",
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])

    def load_training_state(self, trainer: InternVLTrainer, path: str) -> None:
        """Restore optimizer, scheduler and, under DeepSpeed, the weights.

        Raises:
            CheckpointError: DeepSpeed's files are of another stage or number of ranks.
        """
        if trainer.is_deepspeed_enabled:
            loaded, _ = trainer.model_wrapped.load_checkpoint(
                path,
                load_module_strict=not _has_frozen(trainer.model),
                load_lr_scheduler_states=False,
            )
            if loaded is None:
                raise CheckpointError(
                    "DeepSpeed cannot read its part",
                    where=path,
                    fix="Continue with the same --deepspeed stage and number of ranks.",
                )
        else:
            state = torch.load(
                Path(path) / "optimizer.pt",
                weights_only=True,
                map_location=trainer.args.device if trainer.args.device.type != "cpu" else "cpu",
            )
            trainer.optimizer.load_state_dict(state)
        scheduler = torch.load(Path(path) / "scheduler.pt", weights_only=True)
        trainer.lr_scheduler.load_state_dict(scheduler)

    def _barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def _export_callbacks(trainer: InternVLTrainer) -> None:
    """Write the callbacks' state into the Trainer's, as transformers does before it saves."""
    stateful = [c for c in trainer.callback_handler.callbacks if isinstance(c, ExportableState)]
    for callback in [*stateful, trainer.control]:
        trainer.state.stateful_callbacks[type(callback).__name__] = callback.state()


def _has_frozen(model: torch.nn.Module) -> bool:
    return any(not parameter.requires_grad for parameter in model.parameters())
