"""A run planned: whether it fits, how long it takes, what it writes; from its own arguments.

``internvl-chat plan`` is this with a table around it. Nothing is trained, no weight and no image is
read; the arguments are checked as ``train`` checks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from internvl_chat.checkpoint.tokenizer import add_special_tokens, has_tokenizer, load_tokenizer
from internvl_chat.config import OrderConfig, require
from internvl_chat.costs.activations import LargestMicroBatch
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.costs.memory import MemorySetting
from internvl_chat.costs.optimizer_state import optimizer_state
from internvl_chat.errors import ConfigError
from internvl_chat.train.arguments import (
    DataArguments,
    data_config,
    held_out_config,
    order_config,
    source_config,
)
from internvl_chat.train.assumed import Surroundings
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.compilation import never_compiled, row_multiple
from internvl_chat.train.parsing import ReadArguments, read_arguments
from internvl_chat.train.planned_data import (
    PlannedData,
    PlannedEpoch,
    planned_data,
    planned_epoch,
    stated_largest,
)
from internvl_chat.train.planned_machine import PlannedMachine
from internvl_chat.train.planned_model import planned_places, planned_sources
from internvl_chat.train.planned_run import (
    PlannedRun,
    deepspeed_settings,
    half_precision,
    planned_model_of,
    weights_in_four_bits,
)
from internvl_chat.train.preparation import data_seed
from internvl_chat.train.zero_choice import AUTO_IN_FOUR_BITS

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

STATED_TEXT_TOKENS = 256
"""Of a sample that cannot be counted, beside the tokens of its image."""


def plan_run(
    arguments: Sequence[str],
    machine: PlannedMachine,
    *,
    mfu: float | None = None,
    sample_tokens: int | None = None,
) -> PlannedRun:
    """Plan a run.

    Args:
        arguments: as ``train`` takes them, a run file included.
        machine: to plan for.
        mfu: model FLOPs over the device's peak, 0 to 1; a measured one if None.
        sample_tokens: of samples that cannot be counted; None for an image and some text.

    Raises:
        UserError: the arguments are wrong or contradict each other, or files are.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise ConfigError(f"{mfu:g}: want a share above 0 and up to 1", where="--mfu")
    if sample_tokens is not None and sample_tokens < 2:
        raise ConfigError(f"{sample_tokens}: want a number > 1", where="--sample_tokens")
    around = Surroundings(
        world_size=machine.num_gpus,
        on_gpu=True,
        has_bf16=machine.peaks is None or "bf16" in machine.peaks.teraflops,
        num_cpus=8,
    )
    with planned_places(arguments) as places:
        read = read_arguments(arguments, models=places.directories, around=around, is_planned=True)
        _require_planned(read, machine)
        run = planned(read, machine, mfu, sample_tokens, places.notes)
    if read.leaves_zero and read.model.load_in_4bit:
        run = replace(run, notes=(*run.notes, AUTO_IN_FOUR_BITS))
    elif read.leaves_zero:
        choice = run.chosen(run.room)
        run = replace(run.under(choice.source), notes=(*run.notes, choice.told))
    if read.values["torch_compile"]:
        require(never_compiled(stage=run.stage, in_four_bits=read.model.load_in_4bit))
    return run


def _require_planned(read: ReadArguments, machine: PlannedMachine) -> None:
    """What a plan cannot tell.

    Raises:
        ConfigError: the GPU does not compute in the precision.
    """
    peaks = machine.peaks
    for precision, fix in (("bf16", "Use --fp16."), ("tf32", "Drop it.")):
        if read.values[precision] and peaks is not None and precision not in peaks.teraflops:
            raise ConfigError(
                f"{machine.gpu} does not compute in it", where=f"--{precision}", fix=fix
            )


def planned(
    read: ReadArguments,
    machine: PlannedMachine,
    mfu: float | None = None,
    sample_tokens: int | None = None,
    notes: Sequence[str] = (),
) -> PlannedRun:
    """Plan a run whose arguments are read.

    Args:
        read: of the run.
        machine, mfu, sample_tokens: as of :func:`plan_run`.
        notes: to begin with.

    Raises:
        UserError: files are wrong.
    """
    values: Mapping[str, Any] = read.values
    source = source_config(read.model)
    sources = planned_sources(source)
    tokenizer = _tokenizer(source.tokenizer_path, read)
    num_tokens = 0 if tokenizer is None else len(tokenizer)
    model = planned_model_of(read, machine, sources, num_tokens)
    batch, order = _batches(read, machine)
    data = _data(read, tokenizer, model.num_image_token, sample_tokens)
    flops = ModelFlops.of_model(model)
    epoch_of = _epochs(read, data, model, flops)

    def largest_of(batch: BatchPlan, order: OrderConfig) -> LargestMicroBatch:
        if data.is_stated:
            return _rounded_up(_stated_largest(read, batch, order, model.num_image_token), read)
        return _rounded_up(epoch_of(batch, order).largest, read)

    epoch = epoch_of(batch, order)
    return PlannedRun(
        model=model,
        sources=sources,
        read=read,
        machine=machine,
        batch=batch,
        order=order,
        setting=_setting(read, machine, largest_of(batch, order), model),
        data=data,
        epoch=epoch,
        largest_of=largest_of,
        flops=flops,
        steps=_steps(values, epoch),
        num_tokens=num_tokens,
        mfu=mfu,
        notes=(
            *(told for told in read.told if not told.rstrip().endswith(":")),
            *notes,
            *data.notes,
        ),
    )


def _epochs(
    read: ReadArguments, data: PlannedData, model: InternVLChatModel, flops: ModelFlops
) -> Callable[[BatchPlan, OrderConfig], PlannedEpoch]:
    """The first epoch by how it is cut and ordered."""
    work, tile_weight = flops.work(read.model.grad_checkpoint), _tile_weight(model)
    seed = data_seed(SimpleNamespace(**read.values))  # type: ignore[arg-type]

    @cache
    def epoch_of(batch: BatchPlan, order: OrderConfig) -> PlannedEpoch:
        return planned_epoch(
            data,
            order,
            batch,
            work,
            seed=seed,
            num_image_token=model.num_image_token,
            tile_weight=tile_weight,
            row_multiple=_row_multiple(read),
        )

    return epoch_of


def _batches(read: ReadArguments, machine: PlannedMachine) -> tuple[BatchPlan, OrderConfig]:
    values = read.values
    batch = BatchPlan.from_accumulation(
        micro_batch_size=values["per_device_train_batch_size"],
        world_size=machine.num_gpus,
        accumulation_steps=values["gradient_accumulation_steps"],
    )
    order = order_config(
        read.data,
        grouped=values["train_sampling_strategy"] == "group_by_length",
        drop_last=values["dataloader_drop_last"],
    )
    return batch, order


def _data(
    read: ReadArguments, tokenizer: Any | None, num_image_token: int, sample_tokens: int | None
) -> PlannedData:
    config = data_config(read.data, num_image_token=num_image_token, meta_path=read.data.meta_path)
    stated = sample_tokens or num_image_token + STATED_TEXT_TOKENS
    return planned_data(
        config,
        tokenizer,
        held_out=held_out_config(read.data),
        stated=min(stated, read.data.max_seq_length),
    )


def _stated_largest(
    read: ReadArguments, batch: BatchPlan, order: OrderConfig, num_image_token: int
) -> LargestMicroBatch:
    packed = order.mode == "packed"
    most = read.data.max_seq_length
    return stated_largest(
        packed=packed,
        micro_batch_size=batch.micro_batch_size,
        tokens=(order.max_packed_tokens or most) if packed else most,
        tiles=_most_tiles(read.data),
        num_image_token=num_image_token,
    )


def _row_multiple(read: ReadArguments) -> int:
    return row_multiple(read.data, SimpleNamespace(**read.values))  # type: ignore[arg-type]


def _rounded_up(batch: LargestMicroBatch, read: ReadArguments) -> LargestMicroBatch:
    """With rows as long as the run makes them."""
    multiple = _row_multiple(read)
    return replace(batch, row_tokens=math.ceil(batch.row_tokens / multiple) * multiple)


def _most_tiles(data: DataArguments) -> int:
    """Of an image."""
    if not data.dynamic_image_size:
        return 1
    return data.max_dynamic_patch + (data.use_thumbnail and data.max_dynamic_patch > 1)


def _setting(
    read: ReadArguments,
    machine: PlannedMachine,
    largest: LargestMicroBatch,
    model: InternVLChatModel,
) -> MemorySetting:
    values = read.values
    return MemorySetting(
        deepspeed=deepspeed_settings(values, model, world_size=machine.num_gpus),
        world_size=machine.num_gpus,
        compute_dtype=half_precision(values) or torch.float32,
        recompute=read.model.grad_checkpoint,
        writes_scores=read.model.attn_implementation == "eager",
        batch=largest,
        has_norm_kernel=not machine.is_cpu,
        optimizer=optimizer_state(
            str(getattr(values["optim"], "value", values["optim"])), values["optim_args"]
        ),
        in_four_bits=weights_in_four_bits(read, model),
    )


def _steps(values: Mapping[str, Any], epoch: PlannedEpoch) -> int:
    if values["max_steps"] > 0:
        return int(values["max_steps"])
    return max(math.ceil(values["num_train_epochs"] * epoch.steps), 1)


def _tokenizer(path: str, read: ReadArguments) -> Any | None:
    """The model's tokenizer with the special tokens; None where its files are not there."""
    if not has_tokenizer(Path(path)):
        return None
    tokenizer = load_tokenizer(
        path, use_fast=read.model.use_fast_tokenizer, max_seq_length=read.data.max_seq_length
    )
    add_special_tokens(tokenizer)
    return tokenizer


def _tile_weight(model: InternVLChatModel) -> float:
    """How many positions of the language model a tile weighs in memory, roughly."""
    vision, text = model.config.vision_config, model.config.get_text_config()
    positions = (model.config.image_size // vision.patch_size) ** 2 + 1
    trains = any(parameter.requires_grad for parameter in model.vision_model.parameters())
    width = vision.hidden_size * vision.num_hidden_layers
    return trains * positions * width / (text.hidden_size * text.num_hidden_layers)
