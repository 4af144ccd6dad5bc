"""What a planned run comes to, and what another setting of it would need."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.four_bits import quantised_layers
from internvl_chat.checkpoint.save import changed_beside
from internvl_chat.checkpoint.sources import Sources
from internvl_chat.config import OrderConfig
from internvl_chat.costs.activations import LargestMicroBatch
from internvl_chat.costs.disk import DiskNeed, disk_need
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.costs.holdings import parameter_sizes
from internvl_chat.costs.measured import MeasuredRun, Trained, nearest
from internvl_chat.costs.memory import (
    CONTEXT_GIB,
    MemoryEstimate,
    MemorySetting,
    estimate_memory,
)
from internvl_chat.train.arguments import (
    build_config,
)
from internvl_chat.train.batch_plan import BatchPlan
from internvl_chat.train.fused_norms import fuse_norms, wants_fused_norms
from internvl_chat.train.parsing import ReadArguments
from internvl_chat.train.planned_data import (
    PlannedData,
    PlannedEpoch,
)
from internvl_chat.train.planned_machine import PlannedMachine
from internvl_chat.train.planned_model import model_on_meta
from internvl_chat.train.preparation import frozen_dtype, weight_dtype
from internvl_chat.train.zero import read_zero_file, reduce_at_once_alone, stage_of, zero_config
from internvl_chat.train.zero3 import settle_persistence
from internvl_chat.train.zero_choice import NO_ZERO, ZeroChoice, ZeroRoom, choose_zero

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel


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
    largest_of: Callable[[BatchPlan, OrderConfig], LargestMicroBatch]
    """The worst micro batch of the same data cut or ordered otherwise."""
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
    def offloads(self) -> bool:
        """Whether ZeRO keeps a part in the host's memory."""
        zero = (self.setting.deepspeed or {}).get("zero_optimization") or {}
        parts = [zero.get(part) or {} for part in ("offload_optimizer", "offload_param")]
        return any(part.get("device", "none") not in ("none", None) for part in parts)

    @property
    def epochs(self) -> float:
        """How often the run goes over its data."""
        return self.steps / self.epoch.steps

    @property
    def trained(self) -> Trained:
        """Whether adapters train, or weights themselves: those of the LLM, where most of it is."""
        model = self.read.model
        adapts = model.use_llm_lora or (model.use_backbone_lora and model.freeze_llm)
        return "lora" if adapts else "full"

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
        exact = "tf32" if self.read.values["tf32"] else "fp32"
        peak = peaks.flops(precision or exact) if peaks else None  # type: ignore[arg-type]
        if peak is None:
            return None
        if self.mfu is not None:
            low, high, basis = self.mfu, self.mfu, "--mfu"
        else:
            row = self.measurement()
            low, high = row.low, row.high
            basis = f"measured on {row.device}: {row.source}"
            if self.offloads:
                basis += "; without offload, which takes longer"
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
            saves_adapter=_saves_adapter(self),
            optimizer=self.setting.optimizer,
            stage=self.stage if deepspeed else None,
            world_size=self.setting.world_size,
            weight_bytes=item if deepspeed else None,
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

    def on_gpus(self, number: int, batch: LargestMicroBatch) -> MemoryEstimate:
        """What each of so many GPUs needs.

        Args:
            number: of GPUs.
            batch: the worst micro batch on them.
        """
        settings = deepspeed_settings(self.read.values, self.model, world_size=number)
        return self.varied(world_size=number, batch=batch, deepspeed=settings)

    def under(self, zero: str | None) -> PlannedRun:
        """The same run under another DeepSpeed file, by name; None for a run without DeepSpeed."""
        read = replace(self.read, values={**self.read.values, "deepspeed": zero})
        settings = deepspeed_settings(read.values, self.model, world_size=self.setting.world_size)
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
        """The worst micro batch of so many samples or packs, with the same samples a step.

        Args:
            micro_batch_size: divides what a rank has of a step.
            pack: longest one in tokens; None as it is.
        """
        batch = replace(self.batch, micro_batch_size=micro_batch_size)
        order = self.order if pack is None else replace(self.order, max_packed_tokens=pack)
        return self.largest_of(batch, order)


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
    model = planned_model_of(read, run.machine, run.sources, run.num_tokens)
    setting = replace(
        run.setting,
        deepspeed=deepspeed_settings(read.values, model, world_size=run.setting.world_size),
        in_four_bits=weights_in_four_bits(read, model),
    )
    return replace(run, read=read, model=model, setting=setting, flops=ModelFlops.of_model(model))


def half_precision(values: Mapping[str, Any]) -> torch.dtype | None:
    """What a run computes in, by its arguments; None for fp32."""
    return torch.bfloat16 if values["bf16"] else torch.float16 if values["fp16"] else None


def planned_model_of(
    read: ReadArguments, machine: PlannedMachine, sources: Sources, num_tokens: int
) -> InternVLChatModel:
    """The model of a run on the meta device, with the norms that the run will have."""
    values: Any = SimpleNamespace(**{**read.values, "deepspeed": None})
    build = build_config(
        read.model,
        read.data,
        dtype=weight_dtype(values),
        frozen_dtype=frozen_dtype(values),
        attn_implementation=None,
        seed=values.seed,
    )
    model = model_on_meta(build, sources, num_tokens=num_tokens)
    if wants_fused_norms(
        read.model.attn_implementation,
        torch.device("cpu" if machine.is_cpu else "cuda"),
        half_precision=half_precision(read.values) is not None,
    ):
        fuse_norms(model)
    return model


def weights_in_four_bits(read: ReadArguments, model: InternVLChatModel) -> frozenset[str]:
    """Names of the weights that the run holds in 4 bits."""
    if not read.model.load_in_4bit:
        return frozenset()
    layers = quantised_layers(model, model.adapter_modules)
    return frozenset(f"{name}.weight" for name, _ in layers)


def deepspeed_settings(
    values: Mapping[str, Any], model: InternVLChatModel, *, world_size: int
) -> Mapping[str, Any] | None:
    """The run's DeepSpeed file as the trainer makes it, also where DeepSpeed is not installed."""
    source = values["deepspeed"]
    if not source:
        return None
    is_there = importlib.util.find_spec("deepspeed") is not None
    found = zero_config(source, values, torch.device("cuda")) if is_there else None
    config = found or read_zero_file(source)
    zero = config.setdefault("zero_optimization", {})
    reduce_at_once_alone(zero, world_size)
    if zero.get("stage") == 3:
        settle_persistence(zero, model, world_size=world_size)
    return config


def _saves_adapter(run: PlannedRun) -> bool:
    """Whether checkpoints hold the adapter alone, by the rule of saving."""
    has_base = run.read.model.model_name_or_path is not None
    has_lora = any(names.is_lora(name) for name, _ in run.model.named_parameters())
    return has_base and has_lora and None not in changed_beside(run.model).values()
