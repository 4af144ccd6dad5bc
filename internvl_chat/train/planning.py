"""A run planned: whether it fits, how long it takes, what it writes; from its own arguments.

``internvl-chat plan`` is this with a table around it. Nothing is trained, no weight and no image is
read; the arguments are checked as ``train`` checks them.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from internvl_chat.checkpoint.four_bits import quantised_layers
from internvl_chat.checkpoint.sources import Sources
from internvl_chat.checkpoint.tokenizer import add_special_tokens, has_tokenizer, load_tokenizer
from internvl_chat.config import OrderConfig
from internvl_chat.costs.activations import LargestMicroBatch
from internvl_chat.costs.disk import DiskNeed, disk_need
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.costs.holdings import ADAM_BYTES, parameter_sizes
from internvl_chat.costs.measured import MeasuredRun, Trained, nearest
from internvl_chat.costs.memory import (
    CONTEXT_GIB,
    MemoryEstimate,
    MemorySetting,
    estimate_memory,
)
from internvl_chat.errors import ConfigError
from internvl_chat.train.arguments import (
    build_config,
    data_config,
    held_out_config,
    order_config,
    source_config,
)
from internvl_chat.train.assumed import Surroundings
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.parsing import ReadArguments, read_arguments
from internvl_chat.train.planned_data import (
    PlannedData,
    PlannedEpoch,
    planned_data,
    planned_epoch,
    stated_largest,
)
from internvl_chat.train.planned_machine import PlannedMachine
from internvl_chat.train.planned_model import model_on_meta, planned_places, planned_sources
from internvl_chat.train.preparation import data_seed, frozen_dtype, weight_dtype
from internvl_chat.train.zero import read_zero_file, stage_of, zero_config
from internvl_chat.train.zero3 import PERSISTENCE, largest_small
from internvl_chat.train.zero_choice import NO_ZERO, ZeroChoice, ZeroRoom, choose_zero

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

STATED_TEXT_TOKENS = 256
"""Of a sample that cannot be counted, beside the tokens of its image."""


@dataclass(frozen=True, kw_only=True)
class PlannedTime:
    """How long the run trains."""

    low: float
    """Hours, at the higher efficiency."""
    high: float
    basis: str
    """Where the efficiency is from."""

    @property
    def hours(self) -> float:
        """The middle of both, in proportion."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """All that is worked out; ``variant`` asks what another setting would need."""

    model: InternVLChatModel
    sources: Sources
    """What its configurations say, before the run decides anything."""
    read: ReadArguments
    machine: PlannedMachine
    batch: BatchPlan
    order: OrderConfig
    setting: MemorySetting
    data: PlannedData
    epoch: PlannedEpoch
    flops: ModelFlops
    steps: int
    num_tokens: int
    """Rows that the tokenizer's ids need; 0 where nobody knows it."""
    mfu: float | None
    """Given by the user."""
    notes: tuple[str, ...]

    @cached_property
    def memory(self) -> MemoryEstimate:
        """Of each GPU, at the worst micro batch."""
        return estimate_memory(self.model, self.setting)

    @property
    def room(self) -> ZeroRoom:
        """Of each GPU, as ``--deepspeed auto`` reckons with it."""
        return ZeroRoom(memory_gib=self.machine.memory_gib, beside_gib=CONTEXT_GIB)

    def fits(self, memory: MemoryEstimate) -> bool:
        """Whether it does, with something to spare."""
        return memory.total <= self.room.usable_gib

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return stage_of(self.setting.deepspeed)

    @property
    def epochs(self) -> float:
        """How often the run goes over its data."""
        return self.steps / self.epoch.steps

    @property
    def trained(self) -> Trained:
        """Whether adapters train, or weights themselves."""
        return "lora" if self.read.model.use_llm_lora else "full"

    def model_flops(self) -> float:
        """Of the whole run, padding and recomputation left out."""
        text = self.epoch.tokens - self.epoch.tiles * self.model.num_image_token
        one = (
            self.epoch.tokens * self.flops.per_token.total
            + self.epoch.pairs * self.flops.per_pair.total
            + max(text, 0) * self.flops.per_target.total
            + self.epoch.tiles * self.flops.per_tile.total
        )
        return one * self.epochs

    def time(self) -> PlannedTime | None:
        """Hours of training; None where the GPU's peak is not known."""
        peaks = self.machine.peaks
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self.setting.compute_dtype)
        peak = peaks.flops(precision or "fp32") if peaks else None  # type: ignore[arg-type]
        if peak is None:
            return None
        if self.mfu is not None:
            low, high, basis = self.mfu, self.mfu, "--mfu"
        else:
            row = self.measurement()
            low, high = row.low, row.high
            basis = f"measured on {row.device}: {row.source}"
        perfect = self.model_flops() / (peak * self.machine.num_gpus * 3600)
        return PlannedTime(low=perfect / high, high=perfect / low, basis=basis)

    def measurement(self) -> MeasuredRun:
        """The measured efficiency whose setting is most like this one's."""
        return nearest(
            device=self.machine.gpu,
            trained=self.trained,
            packed=self.order.mode == "packed",
            stage=self.stage,
            recompute=self.setting.recompute,
        )

    def disk(self) -> DiskNeed:
        """What the run writes."""
        values, item = self.read.values, self.setting.compute_dtype.itemsize
        deepspeed = self.setting.deepspeed is not None
        return disk_need(
            parameter_sizes(self.model),
            saves_adapter=_saves_adapter(self.read),
            deepspeed=deepspeed,
            weight_bytes=item if deepspeed else 4,
            final_bytes=2 if values["bf16"] else item if deepspeed else 4,
            keeps_state=not values["save_only_model"],
            num_saves=self._num_saves(),
            limit=values["save_total_limit"],
        )

    def _num_saves(self) -> int:
        values = self.read.values
        every = float(values["save_steps"])
        strategy = str(getattr(values["save_strategy"], "value", values["save_strategy"]))
        if strategy == "no":
            return 0
        if strategy == "epoch":
            return math.ceil(self.epochs)
        interval = max(1, math.ceil(every * self.steps) if every < 1 else int(every))
        return max(math.ceil(self.steps / interval), 1)

    def varied(self, **changes: Any) -> MemoryEstimate:
        """What another setting would need; arguments are those of :class:`MemorySetting`."""
        return estimate_memory(self.model, replace(self.setting, **changes))

    def under(self, zero: str | None) -> PlannedRun:
        """The same run under another DeepSpeed file, by name; None for a run without DeepSpeed."""
        read = replace(self.read, values={**self.read.values, "deepspeed": zero})
        settings = deepspeed_settings(read.values, self.model)
        return replace(self, read=read, setting=replace(self.setting, deepspeed=settings))

    def chosen(self, room: ZeroRoom, *, former: str | None = None) -> ZeroChoice:
        """What ``--deepspeed auto`` comes to.

        Args:
            room: of each GPU.
            former: as in :func:`choose_zero`.

        Raises:
            ConfigError: a stage is needed, and DeepSpeed is not installed.
        """

        def total(name: str) -> float:
            return self.under(None if name == NO_ZERO else name).memory.total

        return choose_zero(total, room, former=former)

    def largest(self, micro_batch_size: int, *, pack: int | None = None) -> LargestMicroBatch:
        """The worst micro batch of so many samples or packs, by proportion to this run's."""
        batch = self.setting.batch
        factor = micro_batch_size / self.batch.micro_batch_size
        if self.order.mode != "packed":
            rows, tokens = micro_batch_size, batch.row_tokens
        else:
            limit = self.order.max_packed_tokens or batch.row_tokens
            factor *= (pack or limit) / limit
            rows, tokens = 1, max(int(batch.row_tokens * factor), 1)
        return LargestMicroBatch(
            rows=rows,
            row_tokens=tokens,
            num_tiles=math.ceil(batch.num_tiles * factor),
            num_supervised=max(int(batch.num_supervised * factor), 1),
        )


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
    if not read.leaves_zero:
        return run
    choice = run.chosen(run.room)
    return replace(run.under(choice.source), notes=(*run.notes, choice.told))


def _require_planned(read: ReadArguments, machine: PlannedMachine) -> None:
    """What a plan cannot tell.

    Raises:
        ConfigError: the GPU does not compute in the precision.
    """
    peaks = machine.peaks
    for precision in ("bf16", "fp16"):
        if read.values[precision] and peaks is not None and precision not in peaks.teraflops:
            raise ConfigError(
                f"{machine.gpu} does not compute in it", where=f"--{precision}", fix="Use --fp16."
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
    model = _model(read, sources, num_tokens)
    batch, order = _batches(read, machine)
    data = _data(read, tokenizer, model.num_image_token, sample_tokens)
    flops = ModelFlops.of_model(model)
    epoch = planned_epoch(
        data,
        order,
        batch,
        flops.work(read.model.grad_checkpoint),
        seed=data_seed(SimpleNamespace(**values)),  # type: ignore[arg-type]
        num_image_token=model.num_image_token,
        tile_weight=_tile_weight(model),
    )
    largest = epoch.largest
    if data.is_stated:
        largest = _stated_largest(read, order, model.num_image_token)
    return PlannedRun(
        model=model,
        sources=sources,
        read=read,
        machine=machine,
        batch=batch,
        order=order,
        setting=_setting(read, machine, largest, model),
        data=data,
        epoch=epoch,
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
    read: ReadArguments, order: OrderConfig, num_image_token: int
) -> LargestMicroBatch:
    packed = order.mode == "packed"
    most = read.data.max_seq_length
    return stated_largest(
        packed=packed,
        micro_batch_size=read.values["per_device_train_batch_size"],
        tokens=(order.max_packed_tokens or most) if packed else most,
        tiles=read.data.max_dynamic_patch if read.data.dynamic_image_size else 1,
        num_image_token=num_image_token,
    )


def _setting(
    read: ReadArguments,
    machine: PlannedMachine,
    largest: LargestMicroBatch,
    model: InternVLChatModel,
) -> MemorySetting:
    values = read.values
    half = torch.bfloat16 if values["bf16"] else torch.float16 if values["fp16"] else None
    return MemorySetting(
        deepspeed=deepspeed_settings(values, model),
        world_size=machine.num_gpus,
        compute_dtype=half or torch.float32,
        recompute=read.model.grad_checkpoint,
        writes_scores=read.model.attn_implementation == "eager",
        batch=largest,
        moment_bytes=moment_bytes(str(getattr(values["optim"], "value", values["optim"]))),
        in_four_bits=frozenset(
            f"{name}.weight" for name, _ in quantised_layers(model, model.adapter_modules)
        )
        if read.model.load_in_4bit
        else frozenset(),
    )


def moment_bytes(optim: str) -> int:
    """What an optimizer of transformers keeps of a trained weight, in bytes; Adam's 8 for others.

    Args:
        optim: as ``--optim`` has it.
    """
    if "8bit" in optim:
        return 0 if optim.startswith("paged") else 2
    if "adafactor" in optim or optim == "sgd":
        return 0
    return 4 if "lion" in optim or "adagrad" in optim or "rmsprop" in optim else ADAM_BYTES


def planned_anew(run: PlannedRun, changes: Mapping[str, Any]) -> PlannedRun:
    """The same run with other arguments about the model.

    Args:
        run: as it is.
        changes: fields of ``ModelArguments``.

    Raises:
        ConfigError: they do not fit the model.
    """
    model_arguments = replace(run.read.model, **changes)
    read = replace(run.read, model=model_arguments, values={**run.read.values, **changes})
    model = _model(read, run.sources, run.num_tokens)
    return replace(run, read=read, model=model, flops=ModelFlops.of_model(model))


def _model(read: ReadArguments, sources: Sources, num_tokens: int) -> InternVLChatModel:
    values: Any = SimpleNamespace(**{**read.values, "deepspeed": None})
    build = build_config(
        read.model,
        read.data,
        dtype=weight_dtype(values),
        frozen_dtype=frozen_dtype(values),
        attn_implementation=None,
        seed=values.seed,
    )
    return model_on_meta(build, sources, num_tokens=num_tokens)


def deepspeed_settings(
    values: Mapping[str, Any], model: InternVLChatModel
) -> Mapping[str, Any] | None:
    """The run's DeepSpeed file as the trainer makes it, also where DeepSpeed is not installed."""
    source = values["deepspeed"]
    if not source:
        return None
    is_there = importlib.util.find_spec("deepspeed") is not None
    found = zero_config(source, values, torch.device("cuda")) if is_there else None
    config = found or read_zero_file(source)
    zero = config.setdefault("zero_optimization", {})
    if zero.get("stage") == 3 and zero.get(PERSISTENCE) in (None, "auto"):
        zero[PERSISTENCE] = largest_small(model)  # as settle_zero3 does it
    return config


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


def _saves_adapter(read: ReadArguments) -> bool:
    """Whether checkpoints hold the adapter alone."""
    model = read.model
    has_lora = model.use_llm_lora or model.use_backbone_lora
    whole_parts = model.freeze_llm and model.freeze_backbone and model.freeze_mlp
    return bool(model.model_name_or_path and has_lora and whole_parts)
