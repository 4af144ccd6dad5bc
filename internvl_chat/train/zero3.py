"""What makes ZeRO-3 fast for this model: DeepSpeed's own settings, chosen where nobody gave them.

DeepSpeed hooks every module: a decoder block with LoRA has some 40, each with four calls of Python
a pass, and on one rank each gather waits for the device. Gathered a block at a time, and with what
is small never cut up, a step has a fortieth of the hooks. Measured: ``docs/training.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.partition import full_numel

PERSISTENCE: Final = "stage3_param_persistence_threshold"
_ITS_OWN_LEAVES: Final = ("leaf_module", "stage3_module_granularity_threshold")
"""Settings by which a file chooses itself what is gathered as a whole."""
DEEPSPEEDS_THRESHOLD: Final = 100_000
LARGEST_BLOCK: Final = 10**9
"""Parameters of a block that may be gathered as a whole: DeepSpeed's own limit."""


def settle_zero3(zero: dict[str, Any], model: nn.Module, *, world_size: int) -> list[str]:
    """Choose what the file leaves open, before DeepSpeed takes the model over.

    Args:
        zero: the section ``zero_optimization``, changed in place; what it says stays.
        model: with all that trains decided; its blocks are marked.
        world_size: ranks that share the weights.

    Returns:
        What was set, a phrase each, for the log; empty for other stages.
    """
    if zero.get("stage") != 3:
        return []
    told = []
    if not any(zero.get(key) for key in _ITS_OWN_LEAVES):
        told += _gather_by_block(model)
    told += settle_persistence(zero, model, world_size=world_size)
    if zero.get("memory_efficient_linear") is False:
        told.append("torch's own linear layers")
    return told


def settle_persistence(zero: dict[str, Any], model: nn.Module, *, world_size: int) -> list[str]:
    """Choose which parameters every rank keeps whole, for a run and for the plan of one.

    Args:
        zero: the section ``zero_optimization`` of ZeRO-3, changed in place.
        model: with all that trains decided; on the meta device, too.
        world_size: ranks that share the weights.

    Returns:
        As of :func:`settle_zero3`.
    """
    if world_size == 1 and not _offloads_weights(zero):
        # Whatever the file says: one part is the whole, and kept in place it costs no memory. Each
        # gather of it would wait until the device has nothing left to do.
        zero[PERSISTENCE] = sum(map(full_numel, model.parameters()))
        return ["one rank, so nothing is cut up"]
    if zero.get(PERSISTENCE) not in (None, "auto"):
        return []
    zero[PERSISTENCE] = largest_small(model)
    return [f"parameters of up to {zero[PERSISTENCE]:,} elements are on every rank"]


def _offloads_weights(zero: dict[str, Any]) -> bool:
    target = (zero.get("offload_param") or {}).get("device", "none")
    return target not in ("none", None)


def largest_small(model: nn.Module) -> int:
    """Elements of the largest parameter that is not worth cutting up: all of an adapter."""
    adapter = (full_numel(p) for name, p in model.named_parameters() if names.is_lora(f".{name}"))
    return max(DEEPSPEEDS_THRESHOLD, *adapter, 0)


def _gather_by_block(model: nn.Module) -> list[str]:
    from deepspeed.utils import set_z3_leaf_module

    kinds: dict[str, int] = {}
    for block in blocks_to_gather(model):
        set_z3_leaf_module(block, True)
        kind = type(block).__name__
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"{count} {kind} are gathered as a whole" for kind, count in kinds.items()]


def blocks_to_gather(model: nn.Module) -> Iterator[nn.Module]:
    """Transformer blocks that ZeRO-3 may handle as one module.

    DeepSpeed reduces such a block's gradients when that of its input is there. The first trained
    block of a tower may have an input without one (nothing below it trains); its gradients would be
    taken for zero before they are computed, so that it keeps its hooks.
    """
    for tower in model.modules():
        if not isinstance(tower, nn.ModuleList):
            continue
        is_first = True
        for block in tower:
            if not isinstance(block, GradientCheckpointingLayer):
                continue
            parameters = list(block.parameters())
            trains = any(parameter.requires_grad for parameter in parameters)
            behind = trains and is_first
            is_first = is_first and not trains
            if not behind and sum(map(full_numel, parameters)) <= LARGEST_BLOCK:
                yield block
