"""transformers' Trainer with our own data order, loss over the global batch, logs and saves.

Hooks only: nothing of the library is assigned to. ``tests/unit/train/test_trainer_hooks.py`` checks
that each overridden method still exists with these parameters.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from internvl_chat.checkpoint.partition import full_shape
from internvl_chat.data.collate import Collator
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.images import normalize_pixels
from internvl_chat.data.sampler import StepBatchSampler
from internvl_chat.errors import UserError
from internvl_chat.files import write_json
from internvl_chat.model.constants import NormalizeType
from internvl_chat.train.arguments import TrainArguments
from internvl_chat.train.attention import SDPA_VARLEN
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.checkpoints import CheckpointWriter
from internvl_chat.train.loss import COUNTED, DatasetLosses, count_step, dataset_of_targets
from internvl_chat.train.metrics import (
    ModelFlops,
    StepClock,
    peak_flops,
    peak_memory_bytes,
    step_figures,
)
from internvl_chat.train.order import EpochLoader, ResumableOrder, RunLength
from internvl_chat.train.unused_parameters import GradientWatch

logger = logging.getLogger(__name__)

STEPS_BETWEEN_DATASET_LOSSES = 50
FORWARD_KEYS = ("input_ids", "labels", "attention_mask", "position_ids", "image_flags")


class NonFiniteError(UserError):
    """The loss or a gradient is infinite or no number."""

    exit_code = 5


@dataclass(frozen=True, kw_only=True)
class TrainerSetup:
    """What our trainer needs beyond transformers' arguments."""

    batch_plan: BatchPlan
    rank: int
    attention: str
    """Name of the LLM's kernel, which decides what a packed row must bring."""
    normalize_type: NormalizeType
    pixel_dtype: torch.dtype
    dataset_names: tuple[str, ...]
    writer: CheckpointWriter
    eval_dataset_names: tuple[str, ...] = ()


class InternVLTrainer(Trainer):
    """Trains an InternVLChatModel on a :class:`SftDataset`."""

    args: TrainArguments
    # Set by transformers, which is not type-checked here.
    control: Any
    current_flos: Any
    _globalstep_last_logged: int
    # The loss below is already divided by what the whole step holds.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainArguments,
        train_dataset: SftDataset,
        train_sampler: StepBatchSampler,
        length: RunLength,
        data_collator: Collator,
        setup: TrainerSetup,
        eval_dataset: SftDataset | None = None,
        eval_sampler: StepBatchSampler | None = None,
        **kwargs: Any,
    ) -> None:
        self.setup = setup
        self._train_order = ResumableOrder(train_sampler)
        self._eval_order = ResumableOrder(eval_sampler) if eval_sampler else None
        self._length = length
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            **kwargs,
        )
        self._clock = StepClock()
        self._counts = torch.zeros(len(COUNTED), dtype=torch.float64, device=self.args.device)
        self._dataset_losses = DatasetLosses(len(setup.dataset_names), self.args.device)
        self._watch = GradientWatch(model)
        self._flops = ModelFlops.of_model(model)
        self._peak_flops = peak_flops(self.args.device)

    # ---- data ---------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Our order, our batches: nothing here is sharded or reordered by accelerate."""
        return self._loader(self.train_dataset, self._train_order, keep_workers=True)

    def _loader(self, dataset: Any, order: ResumableOrder, *, keep_workers: bool) -> EpochLoader:
        workers = self.args.dataloader_num_workers
        return EpochLoader(
            dataset,
            batch_sampler=order,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.device.type == "cuda" and self.args.dataloader_pin_memory,
            persistent_workers=workers > 0 and keep_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            # Its own stream: the model's randomness must not depend on the number of epochs
            # started or on the workers.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> Any:
        """Count steps epoch by epoch, which transformers takes to be all as long as the first."""
        values = list(super().set_initial_training_values(args, dataloader))
        steps, epochs = self._length.total(
            num_epochs=args.num_train_epochs, max_steps=args.max_steps
        )
        values[0], values[6] = epochs, steps  # num_train_epochs, max_steps
        return tuple(values)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epoch, micro_batches = super()._init_training_state(*args, **kwargs)
        if self.state.global_step:
            epoch, step = self._length.locate(self.state.global_step)
            micro_batches = step * self.args.gradient_accumulation_steps
        return epoch, micro_batches

    def _run_epoch(self, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # resumed from the last step of all
            return
        epoch = kwargs["epoch"]
        self.train_dataset.set_epoch(epoch)  # type: ignore[union-attr]
        resumed = kwargs["resume_from_checkpoint"] is not None
        if resumed and epoch == kwargs["epochs_trained"]:
            accumulation = self.args.gradient_accumulation_steps
            self._train_order.resume_at(kwargs["steps_trained_in_current_epoch"] // accumulation)
        steps = self._length.steps(epoch)
        kwargs["num_update_steps_per_epoch"] = steps
        kwargs["steps_in_epoch"] = steps * self.args.gradient_accumulation_steps
        self._clock.reset()
        super()._run_epoch(**kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Fetch the micro batches of one step and agree with all ranks on its denominator."""
        start = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._clock.add_wait(time.perf_counter() - start)
        counts = self._sum_over_ranks(count_step(batches).to(device))
        self._counts += counts
        if self._watch.active:
            self._watch.expect_images(bool(counts[COUNTED.index("tiles")] > 0))
        return batches, counts[0].float()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.args.world_size > 1:
            dist.all_reduce(values)
        return values

    # ---- loss ---------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro batch's share of the step's loss, times the number of ranks.

        Data parallelism averages gradients over ranks, so the factor makes the average a sum.
        """
        outputs = model(
            **self._forward_inputs(inputs),
            loss_weight=inputs["loss_weight"],
            loss_denominator=num_items_in_batch,
            return_logits=False,
        )
        self._note_dataset_losses(inputs, self._dataset_losses)
        loss = outputs.loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _forward_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of a collated batch, pixels normalised on the device."""
        taken = {key: inputs[key] for key in FORWARD_KEYS if inputs.get(key) is not None}
        pixels = inputs.get("pixel_values")
        if pixels is not None:
            taken["pixel_values"] = normalize_pixels(
                pixels, normalize_type=self.setup.normalize_type, dtype=self.setup.pixel_dtype
            )
        segments = inputs.get("cu_seq_lens_q")
        if segments is not None and self.setup.attention == "flash_attention_2":
            for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
                taken[name] = inputs[name]
        elif segments is not None and self.setup.attention == SDPA_VARLEN:
            taken["segment_lengths"] = inputs["segment_lengths"]
        elif segments is None and self.setup.attention != "flash_attention_2":
            # Padding stands at the right, where causal attention never looks, and enters no loss:
            # without a mask tensor the plain causal kernel runs.
            taken.pop("attention_mask", None)
            taken.pop("position_ids", None)
        return taken

    def _note_dataset_losses(self, inputs: Mapping[str, Any], into: DatasetLosses) -> None:
        losses = self.model.vocabulary_loss.row_losses
        if losses is not None:
            into.add(inputs["target_dataset_ids"], losses)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        moved = super()._prepare_inputs(inputs)
        # Looked up on the CPU, where reading numbers costs no device sync.
        moved["target_dataset_ids"] = dataset_of_targets(inputs)
        if inputs.get("cu_seq_lens_q") is not None:
            moved["segment_lengths"] = tuple(inputs["cu_seq_lens_q"].diff().tolist())
        return moved

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """FLOPs of this micro batch on this rank, by tokens of each tower."""
        flags = inputs.get("image_flags")
        tiles = 0 if flags is None else len(flags)
        return self._flops.of_batch(inputs["input_ids"].numel(), tiles)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay is for matrices: no norm, bias or layer scale, whatever it is called."""
        return [n for n, p in model.named_parameters() if len(full_shape(p)) > 1]

    # ---- logs ---------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Tensor,
        grad_norm: Tensor | float | None,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        step = self.state.global_step
        if self._watch.active:
            self._watch.check(step, self.args.world_size, self.args.device)
        if self.control.should_log and step > self._globalstep_last_logged:
            logs = self._step_logs(tr_loss, grad_norm)
            logs["learning_rate"] = (
                self._get_learning_rate() if learning_rate is None else learning_rate
            )
            self.log(logs, start_time)
            self._globalstep_last_logged = step
            _require_finite(logs, step)
        if step and step % STEPS_BETWEEN_DATASET_LOSSES == 0:
            self._log_dataset_losses()
        if self.control.should_evaluate:
            metrics = self._evaluate(trial, ignore_keys_for_eval)
            is_new_best = self._determine_best_metric(metrics=metrics, trial=trial)
            if self.args.save_strategy == SaveStrategy.BEST:
                self.control.should_save = is_new_best
            self._clock.reset()
        if self.control.should_save:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            self._clock.reset()

    def _step_logs(self, tr_loss: Tensor, grad_norm: Tensor | float | None) -> dict[str, float]:
        """Reduce and name the figures since the last log: one collective."""
        steps = self.state.global_step - self._globalstep_last_logged
        seconds, waited = self._clock.read()
        device = self.args.device
        own = [float(tr_loss), waited, peak_memory_bytes(device), float(self.current_flos)]
        tr_loss.zero_()
        ranks = self._gather_over_ranks(torch.tensor(own, dtype=torch.float64, device=device))
        loss = ranks[:, 0].mean().item()
        self._total_loss_scalar += loss
        self.state.total_flos += ranks[:, 3].sum().item()
        self.current_flos = 0
        counts = dict(zip(COUNTED, self._counts.tolist(), strict=True))
        self._counts.zero_()
        return step_figures(
            loss=loss,
            steps=steps,
            seconds=seconds,
            counts=counts,
            waited_seconds=ranks[:, 1].max().item(),
            peak_memory_bytes=ranks[:, 2].max().item(),
            flops=ranks[:, 3].mean().item(),
            peak_flops=self._peak_flops,
            grad_norm=None if grad_norm is None else float(grad_norm),
        )

    def _gather_over_ranks(self, values: Tensor) -> Tensor:
        """(F,) on every rank -> (ranks, F) on every rank."""
        if self.args.world_size == 1:
            return values[None]
        gathered = values.new_empty(self.args.world_size * len(values))
        dist.all_gather_into_tensor(gathered, values)
        return gathered.view(self.args.world_size, len(values))

    def _log_dataset_losses(self) -> None:
        sums = self._sum_over_ranks(self._dataset_losses.drain())
        by_name = _by_name(self.setup.dataset_names, sums)
        if by_name:
            self.log({f"loss/{name}": loss for name, loss in by_name.items()})

    # ---- validation ---------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean loss per supervised token of the held-out records, all and by dataset.

        The sampler hands every rank the same number of micro batches (stand-ins with no labels
        fill up), and a micro batch without images brings a blank tile, so that under ZeRO-3 all
        ranks run the same modules.
        """
        assert self.eval_dataset is not None
        assert self._eval_order is not None
        start = time.perf_counter()
        names = self.setup.eval_dataset_names
        losses = DatasetLosses(len(names), self.args.device)
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for batch in self._loader(self.eval_dataset, self._eval_order, keep_workers=False):
                inputs = self._prepare_inputs(self._with_tile(batch))
                with self.compute_loss_context_manager():
                    model(
                        **self._forward_inputs(inputs),
                        loss_weight=inputs["loss_weight"],
                        return_logits=False,
                    )
                self._note_dataset_losses(inputs, losses)
        model.train(was_training)
        sums = self._sum_over_ranks(losses.drain())
        by_name = _by_name(names, sums)
        metrics = {
            f"{metric_key_prefix}_loss": (sums[0].sum() / sums[1].sum().clamp(min=1)).item(),
            **{f"{metric_key_prefix}_loss/{name}": loss for name, loss in by_name.items()},
            f"{metric_key_prefix}_seconds": time.perf_counter() - start,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _with_tile(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch.get("pixel_values") is not None:
            return batch
        size = self.model.config.force_image_size
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        return {**batch, "pixel_values": blank, "image_flags": torch.zeros(1, dtype=torch.long)}

    # ---- checkpoints --------------------------------------------------------------------------

    def position(self) -> tuple[int, int]:
        """(epoch, step in it) of the next step: the whole state of the data order."""
        return self._length.locate(self.state.global_step)

    def save_results(self, metrics: Mapping[str, Any]) -> None:
        """Write train_results.json and trainer_state.json into OUTPUT_DIR, on rank 0."""
        if not self.args.should_save:
            return
        results = {**metrics, "global_step": self.state.global_step}
        write_json(Path(self.args.output_dir) / "train_results.json", results)
        self.save_state()

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        self._shrink_deepspeed_buffers()
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            self.setup.writer.load_training_state(self, resume_from_checkpoint)
        self._watch.attach(resumed=resume_from_checkpoint is not None)
        self._clock.reset()
        return prepared

    def _shrink_deepspeed_buffers(self) -> None:
        """Cap DeepSpeed's bucket sizes, made for 40 B parameters, at what this model has."""
        if not self.is_deepspeed_enabled:
            return
        config = self.accelerator.state.deepspeed_plugin.hf_ds_config.config
        zero = config.get("zero_optimization", {})
        size = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
        for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
            if isinstance(zero.get(key), (int, float)):
                zero[key] = int(min(zero[key], max(size, 1)))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Without DeepSpeed the weights come back before the model is wrapped."""
        self.setup.writer.load_weights(self, resume_from_checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        best = self.state.best_global_step
        if best:
            self.state.best_model_checkpoint = f"{self.args.output_dir}/checkpoint-{best}"
        self.setup.writer.save(self)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is None:
            return
        if self.is_deepspeed_enabled:
            self.setup.writer.load_training_state(self, self.state.best_model_checkpoint)
        else:
            self.setup.writer.load_weights(self, self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a complete, loadable model (or adapter) into ``output_dir``. All ranks call it."""
        self.setup.writer.save_final(self, output_dir or self.args.output_dir)


def _by_name(names: tuple[str, ...], sums: Tensor) -> dict[str, float]:
    """Mean per token of each dataset that had any; ``sums`` is (2, datasets)."""
    return {
        name: total / count
        for name, total, count in zip(names, *sums.tolist(), strict=True)
        if count
    }


def _require_finite(logs: Mapping[str, float], step: int) -> None:
    for name in ("loss", "grad_norm"):
        value = logs.get(name, 0.0)
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name.replace('_', ' ')} is {value} at step {step}",
                fix="Lower --learning_rate, lengthen the warm-up, or look at the samples of this "
                "step; checkpoints of earlier steps are intact.",
            )
