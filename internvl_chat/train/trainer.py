"""transformers' Trainer with our own data order, loss over the global batch, logs and saves.

Hooks only: nothing of the library is assigned to. ``tests/unit/train/test_trainer_hooks.py`` checks
that each overridden method still exists with these parameters.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from internvl_chat.config import NormalizeType, require
from internvl_chat.costs.parameters import full_numel
from internvl_chat.data.collate import Collator
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.sampler import StepBatchSampler
from internvl_chat.files import write_json
from internvl_chat.train.checkpoints import CheckpointWriter, RunPosition, TrainingState
from internvl_chat.train.distributed import sum_over_ranks
from internvl_chat.train.early_stopping import (
    BestEvaluation,
    EarlyStopping,
    EarlyStopRule,
    best_evaluation,
)
from internvl_chat.train.evaluation import held_out_losses, held_out_metrics
from internvl_chat.train.inputs import forward_inputs, segment_lengths
from internvl_chat.train.loss import COUNTED, DatasetLosses, dataset_of_targets
from internvl_chat.train.meter import RunMeter
from internvl_chat.train.metrics import matmul_precision, require_finite
from internvl_chat.train.order import EpochLoader, ResumableOrder, RunLength, RunTotal
from internvl_chat.train.rates import (
    RateMeter,
    has_weight_decay,
    names_by_group,
    num_vision_layers,
    part_rates,
    split_groups,
    unused_rates,
)
from internvl_chat.train.signals import leave_signals_to_parent
from internvl_chat.train.trainer_arguments import TrainArguments
from internvl_chat.train.unused_parameters import UnusedParameterCheck
from internvl_chat.train.zero import reduce_at_once_alone, shrink_buffers
from internvl_chat.train.zero3 import settle_zero3

logger = logging.getLogger(__name__)

STEPS_BETWEEN_DATASET_LOSSES = 50


@dataclass(frozen=True, kw_only=True)
class TrainerSetup:
    """What our trainer needs beyond transformers' arguments."""

    attention: str
    """Name of the LLM's kernel, which decides what a packed row must bring."""
    normalize_type: NormalizeType
    pixel_dtype: torch.dtype
    dataset_names: tuple[str, ...]
    eval_dataset_names: tuple[str, ...]
    writer: CheckpointWriter


@contextmanager
def without_comparison() -> Iterator[None]:
    """Without transformers' warning that a checkpoint was written with other arguments.

    It names the checkpoint's as those that count; ours do, and ``train/resuming.py`` says so.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "do not match the ones in the `trainer_state.json`" not in record.getMessage()

    source = logging.getLogger("transformers.trainer_utils")
    source.addFilter(is_other)
    try:
        yield
    finally:
        source.removeFilter(is_other)


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
        self._meter = RunMeter(
            model,
            dataset_names=setup.dataset_names,
            device=self.args.device,
            precision=matmul_precision(args),
            world_size=self.args.world_size,
        )
        self._unused = UnusedParameterCheck(model)
        self._rate_meter: RateMeter | None = None
        self._rates: dict[str, float] = {}
        rule = EarlyStopRule.of(vars(args))
        self.early_stopping = None if rule is None else EarlyStopping(rule)
        if self.early_stopping is not None:
            self.add_callback(self.early_stopping)

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
            worker_init_fn=leave_signals_to_parent,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            # Its own stream: the model's randomness must not depend on the number of epochs
            # started or on the workers.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> Any:
        """Count steps epoch by epoch, which transformers takes to be all as long as the first."""
        values = list(super().set_initial_training_values(args, dataloader))
        total = self._total()
        # num_train_epochs, max_steps. Where the steps are given, it is they that end the loop over
        # epochs, each of which has one at least.
        values[0], values[6] = total.epochs if total.is_exact else total.steps, total.steps
        return tuple(values)

    def _total(self) -> RunTotal:
        args = self.args
        return self._length.total(num_epochs=args.num_train_epochs, max_steps=args.max_steps)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        with without_comparison():
            epoch, micro_batches = super()._init_training_state(*args, **kwargs)
        if self.state.global_step:
            # transformers keeps the former run's --save_steps, --logging_steps and --eval_steps.
            self.state.compute_steps(self.args, self.state.max_steps)
            epoch, step = self._length.locate(self.state.global_step)
            micro_batches = step * self.args.gradient_accumulation_steps
        self.state.num_train_epochs = self._total().epochs
        return epoch, micro_batches

    def _run_epoch(self, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # resumed from the last step of all
        if self.control.should_training_stop:  # or from one behind which it stopped early
            return
        epoch = kwargs["epoch"]
        self.train_dataset.set_epoch(epoch)  # type: ignore[union-attr]
        resumed = kwargs["resume_from_checkpoint"] is not None
        if resumed and epoch == kwargs["epochs_trained"]:
            accumulation = self.args.gradient_accumulation_steps
            self._train_order.resume_at(kwargs["steps_trained_in_current_epoch"] // accumulation)
        steps = self._length.steps(epoch)
        self.state.num_train_epochs = self._total().epochs  # with each epoch better known
        kwargs["num_update_steps_per_epoch"] = steps
        kwargs["steps_in_epoch"] = steps * self.args.gradient_accumulation_steps
        self._meter.clock.reset()
        super()._run_epoch(**kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Fetch the micro batches of one step and agree with all ranks on its denominator."""
        batches = self._meter.fetch(epoch_iterator, num_batches)
        counts = self._meter.count(batches, device)
        if self._unused.active:
            self._unused.expect_images(bool(counts[COUNTED.index("tiles")] > 0))
        return batches, counts[0].float()

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
        self._note_dataset_losses(inputs, self._meter.losses)
        loss = outputs.loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _forward_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return forward_inputs(
            inputs,
            attention=self.setup.attention,
            normalize_type=self.setup.normalize_type,
            pixel_dtype=self.setup.pixel_dtype,
        )

    def _note_dataset_losses(self, inputs: Mapping[str, Any], into: DatasetLosses) -> None:
        losses = self.model.vocabulary_loss.row_losses
        if losses is not None:
            into.add(inputs["target_dataset_ids"], losses)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Looked up on the CPU, where reading numbers costs no device sync.
        return {
            **super()._prepare_inputs(inputs),
            "target_dataset_ids": dataset_of_targets(inputs),
            **segment_lengths(inputs),
        }

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """Model FLOPs of this micro batch on this rank."""
        return self._meter.flops(inputs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Those of the matrices, see :func:`has_weight_decay`."""
        return [n for n, p in model.named_parameters() if has_weight_decay(p)]

    # ---- the optimizer ------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers', its groups split where the run has rates by part."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rates = part_rates(vars(self.args), num_vision_layers(self.model))
        if is_new and rates is not None:
            trained = [n for n, p in self.model.named_parameters() if p.requires_grad]
            require(unused_rates(vars(self.args), trained))
            split_groups(optimizer, self.model.named_parameters(), rates)
            names = names_by_group(optimizer, self.model.named_parameters())
            self._rate_meter = RateMeter(names, rates, self.args.learning_rate)
        return optimizer

    def _get_learning_rate(self) -> float:
        """What ``--learning_rate`` has come to; the parts' own rates are noted beside it."""
        if self._rate_meter is None:
            return super()._get_learning_rate()
        self._rates = self._rate_meter.read([g["lr"] for g in self.optimizer.param_groups])
        return self._rates["learning_rate"]

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
        if self._unused.active:
            self._unused.check(step, self.args.world_size, self.args.device)
        if self.control.should_log and step > self._globalstep_last_logged:
            logs = self._step_logs(tr_loss, grad_norm)
            logs["learning_rate"] = (
                self._get_learning_rate() if learning_rate is None else learning_rate
            )
            logs |= self._rates
            self.log(logs, start_time)
            self._globalstep_last_logged = step
            require_finite(logs, step)
        if step and step % STEPS_BETWEEN_DATASET_LOSSES == 0:
            losses = self._meter.read_dataset_losses()
            if losses:
                self.log(losses)
        if self.control.should_evaluate:
            metrics = self._evaluate(trial, ignore_keys_for_eval)
            is_new_best = self._is_loadable_as_best() and self._determine_best_metric(
                metrics=metrics, trial=trial
            )
            if self.args.save_strategy == SaveStrategy.BEST:
                self.control.should_save = is_new_best
            self._meter.clock.reset()
        if self.control.should_save:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            self._meter.clock.reset()

    def _is_loadable_as_best(self) -> bool:
        """Whether this step may become the result: under ``load_best_model_at_end`` one that is
        saved, as another could not be loaded in the end."""
        saves = self.control.should_save or self.args.save_strategy == SaveStrategy.BEST
        return saves or not self.args.load_best_model_at_end

    def _step_logs(self, tr_loss: Tensor, grad_norm: Tensor | float | None) -> dict[str, float]:
        figures, loss, flops = self._meter.read(
            loss=tr_loss,
            steps=self.state.global_step - self._globalstep_last_logged,
            flops=float(self.current_flos),
            grad_norm=grad_norm,
        )
        tr_loss.zero_()
        self._total_loss_scalar += loss
        self.state.total_flos += flops
        self.current_flos = 0
        return figures

    # ---- validation ---------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean loss per supervised token of the held-out records, all and by dataset."""
        assert self.eval_dataset is not None
        assert self._eval_order is not None
        start = time.perf_counter()
        names = self.setup.eval_dataset_names
        sums = held_out_losses(
            self.model_wrapped,
            self._loader(self.eval_dataset, self._eval_order, keep_workers=False),
            num_datasets=len(names),
            image_size=self.model.config.force_image_size,
            device=self.args.device,
            forward=self._held_out_forward,
        )
        sums = sum_over_ranks(sums, self.args.world_size)
        metrics = held_out_metrics(names, sums, metric_key_prefix)
        metrics[f"{metric_key_prefix}_seconds"] = time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _held_out_forward(self, batch: dict[str, Any], losses: DatasetLosses) -> None:
        inputs = self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            self.model_wrapped(
                **self._forward_inputs(inputs),
                loss_weight=inputs["loss_weight"],
                return_logits=False,
            )
        self._note_dataset_losses(inputs, losses)

    def outcome(self) -> tuple[BestEvaluation | None, str | None]:
        """The best evaluation, and why the run ended before its last step."""
        stopping = self.early_stopping
        return best_evaluation(vars(self.args), self.state), (
            None if stopping is None else stopping.told(self.state)
        )

    @property
    def is_best(self) -> bool:
        """Whether the result is the checkpoint that validated best."""
        return self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None

    # ---- checkpoints --------------------------------------------------------------------------

    def _training_state(self) -> TrainingState:
        return TrainingState(
            model=self.model,
            engine=self.model_wrapped if self.is_deepspeed_enabled else None,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            device=self.args.device,
        )

    def _position(self) -> RunPosition:
        """Where the run stands, the state of the callbacks put in as transformers does it."""
        stateful = [c for c in self.callback_handler.callbacks if isinstance(c, ExportableState)]
        for callback in [*stateful, self.control]:
            self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        epoch, step = self._length.locate(self.state.global_step)
        return RunPosition(
            epoch=epoch,
            step=step,
            trainer_state=self.state,
            save_random_state=self._save_rng_state,
        )

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
        self._settle_deepspeed()
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            self.setup.writer.load_training_state(
                self._training_state(), Path(resume_from_checkpoint), step=self.state.global_step
            )
        self._unused.attach(resumed=resume_from_checkpoint is not None)
        self._meter.clock.reset()
        return prepared

    def _settle_deepspeed(self) -> None:
        """Cap DeepSpeed's bucket sizes, made for 40 B parameters, at what this model has, and
        choose what its file leaves open."""
        if not self.is_deepspeed_enabled:
            return
        config = self.accelerator.state.deepspeed_plugin.hf_ds_config.config
        zero = config.get("zero_optimization", {})
        shrink_buffers(zero, sum(full_numel(parameter) for parameter in self.model.parameters()))
        reduce_at_once_alone(zero, self.args.world_size)
        told = settle_zero3(zero, self.model, world_size=self.args.world_size)
        if told:
            logger.info("ZeRO-3: %s", "; ".join(told))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Without DeepSpeed the weights come back before the model is wrapped."""
        self.setup.writer.load_weights(self.model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        best = self.state.best_global_step
        own = f"{self.args.output_dir}/checkpoint-{best}"
        if best and (best == self.state.global_step or Path(own).is_dir()):
            self.state.best_model_checkpoint = own  # else the one of the folder it goes on from
        kept = self.state.best_model_checkpoint
        self.setup.writer.save(
            self._training_state(),
            Path(self.args.output_dir),
            step=self.state.global_step,
            position=None if self.args.save_only_model else self._position(),
            limit=self.args.save_total_limit,
            best=Path(kept) if kept else None,
        )

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is None:
            return
        best = Path(self.state.best_model_checkpoint)
        if self.is_deepspeed_enabled:
            self.setup.writer.load_training_state(
                self._training_state(), best, step=self.state.best_global_step or 0
            )
        else:
            self.setup.writer.load_weights(self.model, best)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a complete, loadable model (or adapter) into ``output_dir``. All ranks call it."""
        self.setup.writer.save_final(self.model, Path(output_dir or self.args.output_dir))
