"""What a rank holds all through a run: weights, gradients, optimizer and buffers, to the byte.

Read off our trainer (weights under DeepSpeed in the dtype of the computation, else fp32) and off
DeepSpeed 0.19: ``zero/stage_1_and_2.py`` (parameters flattened group by group and padded to two
elements a rank; buckets), ``zero/stage3.py`` (every parameter cut for itself, one flat buffer of
gradients, sub-groups), ``fp16/unfused_optimizer.py`` (stage 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from internvl_chat.costs.optimizer_state import ADAM, FP32_BYTES, OptimizerState
from internvl_chat.costs.parameters import full_shape
from internvl_chat.costs.zero_buffers import ZeroSettings

MASTER_BYTES = FP32_BYTES
"""Of a trained weight."""
FOUR_BITS_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Of a weight in nf4 with double quantisation: 8 bits a block of 64, 32 for 256 blocks."""
_ALIGNMENT = 2
"""Elements a rank that ZeRO-1 and 2 pad a group to (``nccl_start_alignment_factor``)."""


@dataclass(frozen=True)
class ParameterSize:
    """One parameter, shared ones once."""

    numel: int
    is_trained: bool
    group: int
    """Of the optimizer: 0 with weight decay (matrices), 1 without."""
    held_bytes: float
    """Of an element as the model holds it without DeepSpeed."""
    factors: int = 0
    """Elements of a matrix's rows and columns together; 0 for a vector."""
    is_embedding: bool = False


def parameter_sizes(
    model: nn.Module, *, in_four_bits: frozenset[str] = frozenset()
) -> list[ParameterSize]:
    """Every parameter of a model (real, on the meta device or cut up by ZeRO-3) in its order.

    Args:
        model: with what trains decided.
        in_four_bits: names of weights that a run holds in 4 bits.
    """
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    return [
        replace(
            _size(parameter, FOUR_BITS_BYTES if name in in_four_bits else parameter.element_size()),
            is_embedding=id(parameter) in tables,
        )
        for name, parameter in model.named_parameters()
    ]


def _size(parameter: nn.Parameter, held_bytes: float) -> ParameterSize:
    shape = full_shape(parameter)
    is_matrix = len(shape) > 1
    return ParameterSize(
        numel=math.prod(shape),
        is_trained=parameter.requires_grad,
        group=0 if is_matrix else 1,
        held_bytes=held_bytes,
        factors=math.prod(shape[:-1]) + math.prod((*shape[:-2], shape[-1])) if is_matrix else 0,
    )


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Bytes on one rank's device."""

    weights: int
    gradients: int
    optimizer: int
    """Its state and the fp32 masters, where they are not the weights themselves."""
    buffers: int
    """What stays, or is there in every backward pass: buckets, parameters kept whole."""
    gathered: int
    """Parameters of others that are whole for the moment (ZeRO-3)."""
    stepping: int
    """What the optimizer's step needs beside the rest, when no activation is left."""
    on_cpu: int
    """What a rank holds in the host's memory instead: offloaded, or state that gives way."""


def plain_holdings(
    sizes: Sequence[ParameterSize], *, world_size: int, optimizer: OptimizerState = ADAM
) -> Holdings:
    """A run without DeepSpeed: every rank has everything, gradients meet in DDP's buckets.

    Args:
        sizes: of the model.
        world_size: ranks.
        optimizer: what it keeps.
    """
    state = _whole_state(sizes, optimizer)
    gradients = int(sum(size.numel * size.held_bytes for size in sizes if size.is_trained))
    return Holdings(
        weights=int(sum(size.numel * size.held_bytes for size in sizes)),
        gradients=gradients,
        optimizer=state.on_device,
        # DDP copies gradients into buckets of its own (gradient_as_bucket_view is off).
        buffers=gradients if world_size > 1 else 0,
        gathered=0,
        stepping=0,
        on_cpu=state.on_host,
    )


def zero_holdings(
    sizes: Sequence[ParameterSize],
    zero: ZeroSettings,
    *,
    world_size: int,
    weight_bytes: int,
    optimizer: OptimizerState = ADAM,
) -> Holdings:
    """A run with DeepSpeed.

    Args:
        sizes: of the model.
        zero: what its file says.
        world_size: ranks among which is cut.
        weight_bytes: of a weight as the model computes with it.
        optimizer: what it keeps beside fp32 masters.
    """
    # In fp32 a stage keeps no master beside the weights but for those that flatten anew.
    needs_master = weight_bytes < MASTER_BYTES or zero.stage in (1, 2)
    master_bytes = MASTER_BYTES if needs_master else 0
    if zero.stage == 3:
        return _stage_3(sizes, zero, world_size, weight_bytes, master_bytes, optimizer)
    if zero.stage == 0:
        return _stage_0(sizes, weight_bytes, master_bytes, optimizer)
    return _stage_1_and_2(sizes, zero, world_size, weight_bytes, master_bytes, optimizer)


@dataclass(frozen=True)
class _State:
    """Bytes of what the optimizer keeps beside masters."""

    on_device: int
    on_host: int = 0
    """Of it, what gives way to other tensors."""

    @property
    def total(self) -> int:
        return self.on_device + self.on_host

    @classmethod
    def summed(cls, optimizer: OptimizerState, tensors: Iterable[tuple[int, int]]) -> _State:
        """Of tensors, each its elements and bytes of state."""
        found = list(tensors)
        host = sum(kept for numel, kept in found if optimizer.gives_way(numel))
        return cls(sum(kept for _, kept in found) - host, host)


def _whole_state(sizes: Iterable[ParameterSize], optimizer: OptimizerState) -> _State:
    """Of an optimizer that sees every parameter as it is."""
    return _State.summed(
        optimizer,
        (
            (
                size.numel,
                optimizer.kept(size.numel, factors=size.factors, is_embedding=size.is_embedding),
            )
            for size in sizes
            if size.is_trained
        ),
    )


def _flat_state(shares: Iterable[int], optimizer: OptimizerState) -> _State:
    """Of an optimizer that sees a rank's share of each group as one vector."""
    return _State.summed(optimizer, ((share, optimizer.kept(share)) for share in shares))


def state_bytes(
    sizes: Sequence[ParameterSize], optimizer: OptimizerState, *, stage: int, world_size: int
) -> int:
    """Bytes of what the optimizers of all ranks keep together, fp32 masters left out.

    Args:
        sizes: of the model.
        optimizer: what it keeps.
        stage: of ZeRO; 0 for one that sees whole parameters, which every rank keeps alike: once.
        world_size: ranks among which is cut.
    """
    if stage == 0:
        return _whole_state(sizes, optimizer).total
    shares = [math.ceil(sum(size.numel for size in group) / world_size) for group in _groups(sizes)]
    return world_size * _flat_state(shares, optimizer).total


def _groups(sizes: Iterable[ParameterSize]) -> list[list[ParameterSize]]:
    groups: dict[int, list[ParameterSize]] = {}
    for size in sizes:
        if size.is_trained:
            groups.setdefault(size.group, []).append(size)
    return [groups[number] for number in sorted(groups)]


def _stage_0(
    sizes: Sequence[ParameterSize],
    weight_bytes: int,
    master_bytes: int,
    optimizer: OptimizerState,
) -> Holdings:
    state = _whole_state(sizes, optimizer)
    trained = sum(size.numel for size in sizes if size.is_trained)
    return Holdings(
        weights=weight_bytes * sum(size.numel for size in sizes),
        gradients=weight_bytes * trained,
        optimizer=state.on_device + master_bytes * trained,
        buffers=0,
        gathered=0,
        stepping=MASTER_BYTES * trained,
        on_cpu=state.on_host,
    )


def _stage_1_and_2(
    sizes: Sequence[ParameterSize],
    zero: ZeroSettings,
    world_size: int,
    weight_bytes: int,
    master_bytes: int,
    optimizer: OptimizerState,
) -> Holdings:
    gradient_bytes = zero.gradient_bytes or weight_bytes
    unit = _ALIGNMENT * world_size
    padded = [
        math.ceil(sum(size.numel for size in group) / unit) * unit for group in _groups(sizes)
    ]
    frozen = sum(size.numel for size in sizes if not size.is_trained)
    trained = sum(size.numel for size in sizes if size.is_trained)
    share = sum(padded) // world_size
    state = _flat_state((total // world_size for total in padded), optimizer)
    bucket = zero.sizes["reduce_bucket_size"] * weight_bytes
    largest = max((size.numel for size in sizes if size.is_trained), default=0)
    offloads = zero.offloads_optimizer
    kept = trained if zero.stage == 1 else _kept_gradients(_groups(sizes), padded, world_size)
    gradients = gradient_bytes * kept
    if offloads:
        gradients = 0 if zero.stage == 2 else gradients
    return Holdings(
        weights=weight_bytes * (frozen + sum(padded)),
        gradients=gradients,
        optimizer=0 if offloads else state.on_device + master_bytes * share,
        buffers=(bucket * (2 if zero.overlaps else 1) if zero.is_contiguous else 0)
        + (largest * weight_bytes if offloads else 0),
        gathered=0,
        # The group's gradients flattened, then in fp32.
        stepping=0
        if offloads
        else (gradient_bytes + MASTER_BYTES) * max(padded, default=0) // world_size,
        on_cpu=state.total + (master_bytes + MASTER_BYTES + weight_bytes) * share
        if offloads
        else state.on_host,
    )


def _kept_gradients(
    groups: Sequence[Sequence[ParameterSize]], padded: Sequence[int], world_size: int
) -> int:
    """Elements of the gradients that ZeRO-2 leaves the rank that has most: those of all parameters
    of which it has a part, each whole."""
    kept = [0] * world_size
    for group, total in zip(groups, padded, strict=True):
        share, begin = total // world_size, 0
        for size in group:
            last = (begin + size.numel - 1) // share
            for rank in range(begin // share, min(last, world_size - 1) + 1):
                kept[rank] += size.numel
            begin += size.numel
    return max(kept, default=0)


def _stage_3(
    sizes: Sequence[ParameterSize],
    zero: ZeroSettings,
    world_size: int,
    weight_bytes: int,
    master_bytes: int,
    optimizer: OptimizerState,
) -> Holdings:
    gradient_bytes = zero.gradient_bytes or weight_bytes
    parts = [math.ceil(size.numel / world_size) for size in sizes]
    shares = [sum(math.ceil(size.numel / world_size) for size in group) for group in _groups(sizes)]
    share, state = sum(shares), _flat_state(shares, optimizer)
    persistent = _persistent(sizes, zero)
    gradients = gradient_bytes * share
    # At one rank a whole parameter is a view of its part.
    whole = 0 if world_size == 1 and not zero.offloads_weights else weight_bytes
    total = sum(size.numel for size in sizes)
    largest = max((size.numel for size in sizes), default=0)
    live = min(max(zero.sizes["stage3_max_live_parameters"], largest), total - persistent)
    bucket = zero.sizes["reduce_bucket_size"] * weight_bytes if zero.is_contiguous else 0
    sub_group = _largest_sub_group(sizes, zero.sizes["sub_group_size"], world_size)
    weights = weight_bytes * sum(parts)
    on_cpu = state.on_host
    if zero.offloads_optimizer:
        on_cpu = state.total + gradients + (master_bytes + MASTER_BYTES) * share
    return Holdings(
        weights=0 if zero.offloads_weights else weights,
        gradients=0 if zero.offloads_optimizer else gradients,
        optimizer=0 if zero.offloads_optimizer else state.on_device + master_bytes * share,
        buffers=bucket + whole * persistent,
        gathered=whole * live,
        stepping=0 if zero.offloads_optimizer else (gradient_bytes + MASTER_BYTES) * sub_group,
        on_cpu=on_cpu + (weights if zero.offloads_weights else 0),
    )


def _persistent(sizes: Sequence[ParameterSize], zero: ZeroSettings) -> int:
    """Elements of the parameters that every rank keeps whole."""
    kept = 0
    for size in sizes:
        if size.numel + kept > zero.sizes["stage3_model_persistence_threshold"]:
            continue
        if size.numel <= zero.sizes["stage3_param_persistence_threshold"]:
            kept += size.numel
    return kept


def _largest_sub_group(sizes: Sequence[ParameterSize], limit: int, world_size: int) -> int:
    """Elements of the largest set of parts that the optimizer steps at once."""
    largest = 0
    for group in _groups(sizes):
        held = 0
        for size in group:
            held += math.ceil(size.numel / world_size)
            largest = max(largest, held)
            if held >= limit:
                held = 0
    return largest
