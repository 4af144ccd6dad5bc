"""Fine-tune InternVL-Chat: arguments in, a checkpoint out.

``python internvl_chat/train/finetune.py --model_name_or_path … --meta_path … --output_dir …`` under
torchrun, srun or alone; ``python -m internvl_chat.train.finetune`` and ``internvl-chat train`` are
the same. Exit codes: see docs/training.md.
"""

# ruff: noqa: E402 (an entry point sets its process up before it loads torch)

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run by path: this folder leads sys.path, where our module names would hide others', and the
    # package itself may not be installed.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from internvl_chat.quiet import set_up_output

VERBOSE_FLAGS = ("-v", "--verbose")

if __name__ == "__main__":
    # Until main() listens, Ctrl-C ends the imports without their traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_up_output(verbose=not set(VERBOSE_FLAGS).isdisjoint(sys.argv))

import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PrinterCallback, ProgressCallback

from internvl_chat.checkpoint.card.files import write_run_card
from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.config import require, video_note
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.data.bad_samples import set_journal_aside
from internvl_chat.data.collate import Collator
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.held_out import write_held_out
from internvl_chat.data.processes import own_cores
from internvl_chat.data.sampler import StepBatchSampler
from internvl_chat.errors import UserError
from internvl_chat.train import reports
from internvl_chat.train.argument_file import names_file
from internvl_chat.train.arguments import order_config
from internvl_chat.train.assumed import Surroundings
from internvl_chat.train.attention import register_attention, settle_sdpa
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.callbacks import RunProgress, TensorBoardWriter, tensorboard_folder
from internvl_chat.train.checkpoints import CheckpointWriter
from internvl_chat.train.compilation import (
    compile_blocks,
    compile_problems,
    not_the_whole_model,
    row_multiple,
)
from internvl_chat.train.distributed import (
    DistributedState,
    agree,
    cores_per_process,
    from_rank_zero,
    init_distributed,
    shut_down,
)
from internvl_chat.train.ending import RunEnd, SaveBeforeEnd, StatusCallback
from internvl_chat.train.flags import HELP_ALL, HELP_FLAGS, help_text, help_width
from internvl_chat.train.fused_norms import fuse_norms, wants_fused_norms
from internvl_chat.train.last_words import chat_command, last_words
from internvl_chat.train.launched import join_output, leave_at_once, leave_started, meant_signal
from internvl_chat.train.order import RunLength
from internvl_chat.train.output_errors import require_writable, telling_of_output
from internvl_chat.train.parsing import (
    RunArguments,
    as_run,
    is_true,
    other_flags,
    output_dir,
    peek,
    peek_seconds,
    read_arguments,
)
from internvl_chat.train.preparation import PreparedRun, prepare_run
from internvl_chat.train.products import settle_products
from internvl_chat.train.record import (
    PLANNED_STEPS,
    RESULTS,
    as_dict,
    finish_record,
    write_record,
)
from internvl_chat.train.resuming import (
    RunStart,
    find_start,
    left_by_an_earlier_run,
    tell,
    verdict_on,
)
from internvl_chat.train.signals import EndingSignals, InterruptedBySignal
from internvl_chat.train.starting_points import fetch_weights, find_models
from internvl_chat.train.status import RunStatus
from internvl_chat.train.tracking import WRITERS, Writer, tracked_run, tracker_writers
from internvl_chat.train.trainer import InternVLTrainer, TrainerSetup
from internvl_chat.train.update_rule import update_problems
from internvl_chat.train.validation import best_metric_problems
from internvl_chat.train.zero import require_deepspeed
from internvl_chat.train.zero_choice import is_auto
from internvl_chat.train.zero_fitting import settle_zero

logger = logging.getLogger("internvl_chat.train")

FEW_STEPS = 10
"""Below this a run that others' defaults complete is told how to get more."""
SECONDS_TO_HEAR = 2.0
"""How much later than another rank this one may hear a signal that was sent to all."""


def main(argv: Sequence[str] | None = None, *, assumes: bool = False) -> int:
    """Run a fine-tuning; returns the exit code and leaves it in OUTPUT_DIR/status.json too.

    Args:
        argv: without the program's name; ``sys.argv[1:]`` if None.
        assumes: whether what is not said follows from ``assumed.py``, as in ``internvl-chat
            train``; with a run file it does in any case.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [word for word in given if word not in VERBOSE_FLAGS]
    set_up_output(verbose=len(arguments) < len(given))
    if not HELP_FLAGS.isdisjoint(arguments):
        sys.stdout.write(help_text())
        if HELP_ALL in arguments:
            sys.stdout.write(f"\n{other_flags(help_width())}")
        return 0
    join_output()
    assumes = assumes or names_file(arguments)
    end = RunEnd(output_dir(arguments, assumes=assumes))
    with EndingSignals(end.force, meaning=meant_signal) as signals:
        leave_started()
        try:
            return train_to_the_end(arguments, end, signals, assumes=assumes)
        except InterruptedBySignal:  # came while another error was on its way
            return end.interrupted(signals.settle() or signal.SIGTERM)


def train_to_the_end(
    arguments: list[str], end: RunEnd, signals: EndingSignals, *, assumes: bool
) -> int:
    """Train, and say the last word however it ends; returns the exit code."""
    state: DistributedState | None = None
    try:
        state = start(arguments)
        end.meet(state)
        folder_named = output_dir(arguments, assumes=assumes)
        models = find_models(arguments, state, folder=folder_named)
        around = surroundings(state) if assumes else None
        device = state.device
        read = agree(
            state,
            lambda: read_arguments(arguments, device=device, models=models, around=around),
        )
        zero, state = settle_zero(read, state)
        args = agree(state, lambda: as_run(read, device, zero=zero))
        folder = Path(args.train.output_dir)
        from_rank_zero(state, lambda: require_writable(folder))
        logs = args.train.logging_dir if args.train.uses_tensorboard else None
        if logs:
            from_rank_zero(state, lambda: require_writable(Path(logs), flag="--logging_dir"))
        before = agree(state, end.status.start)
        if before:
            logger.warning("the run before in this OUTPUT_DIR was interrupted: %s", before)
        for told in args.told:
            logger.info("%s", told)
        fetch_weights(arguments, models, state)
        with telling_of_output(folder, is_main=state.is_main):
            saved_at = run(args, state, end.status, signals)
    except BaseException as err:
        # A rank may lose another, which was faster to end, before it hears the signal itself.
        has_peers = isinstance(err, RuntimeError) and state is not None and state.world_size > 1
        number = signals.settle(SECONDS_TO_HEAR if has_peers else 0)
        if number is not None:
            because = None if isinstance(err, InterruptedBySignal) else repr(err)
            return end.interrupted(number, because=because)
        if isinstance(err, UserError):
            code = end.refused(err)
            shut_down()
            return code
        end.crashed(err)
        shut_down()
        raise
    signals.settle()
    shut_down()
    return end.complete() if saved_at is None else end.saved(saved_at)


def start(arguments: Sequence[str]) -> DistributedState:
    """Join the process group, which ZeRO-3's arguments need to exist, and set up logging.

    Raises:
        ConfigError: DeepSpeed is asked for and not installed.
    """
    source = peek(arguments, "deepspeed", "")
    wants_deepspeed = source != "" and not is_auto(source)  # else it joins when it is chosen
    if wants_deepspeed:
        require_deepspeed()
    state = init_distributed(
        timeout_seconds=peek_seconds(arguments, "ddp_timeout", 1800),
        use_cpu=is_true(peek(arguments, "use_cpu", "false")),
        deepspeed=wants_deepspeed,
    )
    reports.set_up_logging(state)
    for note in state.notes:
        logger.info("%s", note)
    return state


def surroundings(state: DistributedState) -> Surroundings:
    """What of the machine decides where the run does not say."""
    on_gpu = state.device.type == "cuda"
    return Surroundings(
        world_size=state.world_size,
        on_gpu=on_gpu,
        has_bf16=on_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        num_cpus=cores_per_process(state.launcher, os.environ, own_cores()),
    )


def run(
    args: RunArguments, state: DistributedState, status: RunStatus, signals: EndingSignals
) -> int | None:
    """Build the run, top to bottom, and train; ``status`` is told how far it has come.

    Returns:
        The step at which a signal ended it, its checkpoint saved; None at the end of the run.
    """
    settle_kernels(args, state)
    batch_plan = BatchPlan.from_accumulation(
        micro_batch_size=args.train.per_device_train_batch_size,
        world_size=state.world_size,
        accumulation_steps=args.train.gradient_accumulation_steps,
    )
    begun = from_rank_zero(
        state,
        lambda: find_start(
            args, world_size=state.world_size, global_batch_size=batch_plan.global_batch_size
        ),
    )
    prepared = prepare(args, state, begun)
    writer = checkpoint_writer(args, state, batch_plan, prepared, begun)
    sampler = train_sampler(args, prepared.train, batch_plan, state, rule=begun.order_rule)
    is_constant = not args.data.use_packed_ds
    length = RunLength(sampler, constant=is_constant, known_begin=begun.epoch_begin)
    if not goes_on(args, state, begun, length, num_samples=len(prepared.train)):
        return None

    model = build_where_it_computes(prepared, state)
    prepare_blocks(args, model, state.device)

    sampler.rates = ModelFlops.of_model(model).work(args.model.grad_checkpoint)
    reports.log_start(args, state, batch_plan, model, prepared, sampler, length, begun.step)
    trainer = build_trainer(args, state, model, prepared, writer, sampler, length, begun.record)
    if state.is_main:
        write_beginning(Path(args.train.output_dir), begun, prepared)
    saving = save_before_end(args, state, signals)
    trainer.add_callback(StatusCallback(status))
    trainer.add_callback(saving)
    checkpoint = begun.checkpoint
    try:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except InterruptedBySignal:
        close_shown(trainer)
        raise
    except BaseException:
        close_shown(trainer, trackers="failed")
        raise
    close_shown(trainer, trackers="complete")
    if saving.stopped_at is not None:
        return saving.stopped_at
    save_finished(trainer, begun, prepared, result.metrics, status)
    return None


def build_where_it_computes(prepared: PreparedRun, state: DistributedState) -> Any:
    """The model on this rank's device, with what of it trains decided.

    Without ZeRO-3 each GPU holds all the weights, as DeepSpeed's other stages want it too: made
    there at once, they are at no time in the memory of a host whose ranks would each make them.

    Args:
        prepared: its plan is used up.
        state: TrainingArguments exist by now; under ZeRO-3 they make the model come up partitioned.
    """
    model = build_model(
        prepared.build,
        prepared.tokenizer,
        num_new_tokens=prepared.num_new_tokens,
        plan=prepared.plan,
        device=state.device,
    )
    apply_freezing_and_lora(model, prepared.build.trainable)
    return model


def settle_kernels(args: RunArguments, state: DistributedState) -> None:
    """Decide what holds for the whole process: how attention and products are computed."""
    register_attention()
    half_precision = args.train.bf16 or args.train.fp16
    notes = (
        settle_sdpa(
            state.device,
            half_precision=half_precision,
            lengths_repeat=(args.data.pad_to_multiple_of or 1) > 1,
        ),
        settle_products(state.device, tf32=args.train.tf32, is_fp32=not half_precision),
    )
    for note in filter(None, notes):
        logger.info("%s", note)


def prepare_blocks(args: RunArguments, model: Any, device: torch.device) -> None:
    """How the blocks of both towers are called: with fused norms, recomputed, compiled."""
    half_precision = args.train.bf16 or args.train.fp16
    if wants_fused_norms(args.model.attn_implementation, device, half_precision=half_precision):
        count = fuse_norms(model)
        if count:  # none of a language model whose norms mean something else
            logger.info("%d norms are one kernel each", count)
    if args.model.grad_checkpoint:
        recompute_activations(model)
    if args.train.torch_compile:
        count = compile_blocks(model, args.train)
        logger.info("compiling %d blocks when they are first called: it takes a minute", count)


def recompute_activations(model: Any) -> None:
    """Turn gradient checkpointing on, by saved-tensor hooks.

    transformers would have the inputs of both towers require gradients, which only the reentrant
    kind needs: a backward pass through all that is frozen before the first layer that trains.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()


def write_beginning(output_dir: Path, begun: RunStart, prepared: PreparedRun) -> None:
    """Write what the run is told and what it does not train on, as training begins."""
    write_record(output_dir, begun.record)
    write_held_out(output_dir, prepared.held_out_records())


def close_shown(
    trainer: InternVLTrainer, *, trackers: Literal["complete", "failed"] | None = None
) -> None:
    """End what a run shows: an error has a line of its own, and the curve its last steps.

    Args:
        trainer: of the run.
        trackers: how their runs ended; None leaves them, who may wait for a network, as they are.
    """
    for shown in trainer.callback_handler.callbacks:
        if isinstance(shown, (RunProgress, TensorBoardWriter)):
            shown.close()
        elif isinstance(shown, Writer) and trackers is not None:
            shown.close(failed=trackers == "failed")


def prepare(args: RunArguments, state: DistributedState, begun: RunStart) -> PreparedRun:
    """Read all but the weights, and check what could not be checked before.

    Raises:
        UserError: of any kind.
    """
    require(update_problems(args.train))
    require(compile_problems(args.model, args.data, args.train, state.device))
    if begun.is_anew:
        from_rank_zero(state, lambda: set_journal_aside(Path(args.train.output_dir)))
    if note := video_note(args.data.video_backend):
        logger.info("%s", note)
    prepared = agree(state, lambda: prepare_run(args, state), one_after_the_other=True)
    if prepared.evaluation is not None:
        held_out = prepared.evaluation.dataset_names
        require(best_metric_problems(args.train.metric_for_best_model, held_out))
    return prepared


def checkpoint_writer(
    args: RunArguments,
    state: DistributedState,
    batch_plan: BatchPlan,
    prepared: PreparedRun,
    begun: RunStart,
) -> CheckpointWriter:
    """What saves and restores the run."""
    return CheckpointWriter(
        tokenizer=prepared.tokenizer,
        global_batch_size=batch_plan.global_batch_size,
        normalize_type=prepared.build.images.normalize_type,
        decode=prepared.build.images.decode,
        begun_from=prepared.build.source.model_name_or_path,
        final_dtype=torch.bfloat16 if args.train.bf16 else None,
        rank=state.rank,
        world_size=state.world_size,
        num_samples=len(prepared.train),
        order_rule=begun.order_rule,
        stale=left_by_an_earlier_run(args),
        run_record=begun.record,
    )


def goes_on(
    args: RunArguments,
    state: DistributedState,
    begun: RunStart,
    length: RunLength,
    *,
    num_samples: int,
) -> bool:
    """Whether there is anything to train; says what becomes of an earlier run in OUTPUT_DIR.

    Raises:
        CheckpointError: OUTPUT_DIR holds the run of other arguments.
    """
    total = length.total(num_epochs=args.train.num_train_epochs, max_steps=args.train.max_steps)
    steps = total.steps
    verdict = from_rank_zero(
        state,
        lambda: verdict_on(
            begun, args, steps=steps, num_samples=num_samples, world_size=state.world_size
        ),
    )
    if state.is_main:
        tell(begun, verdict, steps, args.train.output_dir)
    if state.is_main and args.told and verdict != "complete" and steps < FEW_STEPS:
        logger.warning(
            "only %d optimizer step%s in all, of which the first is warm-up's: give more "
            "--num_train_epochs, or fewer --gradient_accumulation_steps, to see a change",
            steps,
            "s" if steps > 1 else "",
        )
    if verdict == "complete" and state.is_main:
        logger.info("talk to it: %s", chat_command(Path(args.train.output_dir)))
    return verdict != "complete"


def save_finished(
    trainer: InternVLTrainer,
    begun: RunStart,
    prepared: PreparedRun,
    metrics: dict[str, Any],
    status: RunStatus,
) -> None:
    """Write the finished model and what was reached, and say so last of all."""
    output_dir = Path(trainer.args.output_dir)
    is_main = trainer.args.should_save
    if is_main:
        # From here on the model at the root is the former run's no longer.
        (output_dir / RESULTS).unlink(missing_ok=True)
    trainer.save_model(str(output_dir))
    bad_samples = prepared.train.bad_samples.journalled()
    if is_main:
        finish_record(output_dir, begun.record)
    best, stopped_early = trainer.outcome()
    reached = {"best": best.as_dict() if best else None, "stopped_early": stopped_early}
    reached = {name: value for name, value in reached.items() if value is not None}
    status.note(**reached)
    planned = {PLANNED_STEPS: trainer.state.max_steps}
    trainer.save_results({**metrics, "bad_samples": bad_samples, **planned, **reached})
    if is_main:
        write_run_card(output_dir)
        words = last_words(
            trainer.state,
            output_dir,
            seconds=float(metrics.get("train_runtime", 0.0)),
            first_step=begun.step,
            bad_samples=bad_samples,
            is_best=trainer.is_best,
            best=best,
            stopped_early=stopped_early,
        )
        logger.info("%s", "\n  ".join(words))


def save_before_end(
    args: RunArguments, state: DistributedState, signals: EndingSignals
) -> SaveBeforeEnd:
    """What --enable_jit_checkpoint asks for; transformers' own callback is then not added."""
    is_wanted, args.train.enable_jit_checkpoint = args.train.enable_jit_checkpoint, False
    return SaveBeforeEnd(
        signals, is_wanted=is_wanted, world_size=state.world_size, device=state.device
    )


def train_sampler(
    args: RunArguments,
    dataset: SftDataset,
    batch_plan: BatchPlan,
    state: DistributedState,
    *,
    rule: int,
) -> StepBatchSampler:
    """This rank's micro batches, of steps that depend on data, seed and epoch only."""
    order = order_config(
        args.data,
        grouped=args.train.train_sampling_strategy == "group_by_length",
        drop_last=args.train.dataloader_drop_last,
        rule=rule,
    )
    return StepBatchSampler(
        lambda epoch: dataset.plan(
            epoch, global_batch_size=batch_plan.global_batch_size, order=order
        ),
        rank=state.rank,
        world_size=state.world_size,
        micro_batch_size=batch_plan.micro_batch_size,
        accumulation=batch_plan.accumulation_steps,
        row_multiple=row_multiple(args.data, args.train),
    )


def eval_sampler(
    args: RunArguments, dataset: SftDataset, state: DistributedState
) -> StepBatchSampler:
    """Held-out records, each once, the same number of micro batches on every rank."""
    size = args.train.per_device_eval_batch_size
    order = order_config(args.data, grouped=True, drop_last=False)
    return StepBatchSampler(
        lambda epoch: dataset.plan(0, global_batch_size=size * state.world_size, order=order),
        rank=state.rank,
        world_size=state.world_size,
        micro_batch_size=size,
        accumulation=1,
        row_multiple=row_multiple(args.data, args.train),
    )


def curve_folder(args: RunArguments, record: dict[str, Any]) -> Path:
    """Where TensorBoard's figures go: for a run that goes on, where they went before."""
    parent = Path(args.train.logging_dir or os.path.join(args.train.output_dir, "runs"))
    is_own = args.train.logging_dir is None and not args.train.overwrite_output_dir
    record["tensorboard"] = tensorboard_folder(
        parent, record["tensorboard"], takes_newest=record["resumed_at"] > 0 and is_own
    )
    return parent / record["tensorboard"]


def build_trainer(
    args: RunArguments,
    state: DistributedState,
    model: Any,
    prepared: PreparedRun,
    writer: CheckpointWriter,
    sampler: StepBatchSampler,
    length: RunLength,
    record: dict[str, Any],
) -> InternVLTrainer:
    """The trainer with its data, its setup and what it shows."""
    collator = Collator(
        pad_token_id=prepared.tokenizer.pad_token_id,
        packed=args.data.use_packed_ds,
        loss_reduction=args.data.loss_reduction,
        row_multiple=row_multiple(args.data, args.train),
    )
    callbacks: list[Any] = [RunProgress()]
    if args.train.uses_tensorboard and state.is_main:
        samples = reports.training_samples(prepared.train, prepared.tokenizer, sampler)
        callbacks.append(
            TensorBoardWriter(curve_folder(args, record), arguments=as_dict(args), samples=samples)
        )
    if state.is_main:
        callbacks += tracker_writers(args.train.report_to or [], tracked_run(args.train, record))
    # transformers' own ones of these are not added.
    own = {"tensorboard", *WRITERS}
    args.train.report_to = [name for name in args.train.report_to or [] if name not in own]
    evaluation = prepared.evaluation
    with not_the_whole_model(args.train):
        trainer = InternVLTrainer(
            model=model,
            args=args.train,
            train_dataset=prepared.train,
            train_sampler=sampler,
            length=length,
            data_collator=collator,
            eval_dataset=evaluation,
            eval_sampler=eval_sampler(args, evaluation, state) if evaluation else None,
            setup=TrainerSetup(
                attention=prepared.attention,
                normalize_type=args.data.normalize_type,
                pixel_dtype=prepared.build.dtype,
                dataset_names=prepared.train.dataset_names,
                eval_dataset_names=evaluation.dataset_names if evaluation else (),
                writer=writer,
            ),
            callbacks=callbacks,
        )
    for own_bar in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(own_bar)  # RunProgress shows more, on one line
    return trainer


if __name__ == "__main__":
    exit_code = main()
    if exit_code:
        leave_at_once(exit_code)
