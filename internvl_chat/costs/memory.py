"""How much memory a run takes on each GPU, by part, at its largest micro batch.

What is held all through the run is counted to the byte (``holdings``), what the forward pass saves
on the model itself (``activations``). ``docs/planning.md`` says how near that comes to runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from internvl_chat.costs.activations import LargestMicroBatch, count_activations
from internvl_chat.costs.holdings import (
    Holdings,
    ParameterSize,
    parameter_sizes,
    plain_holdings,
    zero_holdings,
)
from internvl_chat.costs.optimizer_state import ADAM, OptimizerState
from internvl_chat.costs.zero_buffers import ZeroSettings
from internvl_chat.model.vocabulary_loss import logits_are_the_heads

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

GIB: Final = 2**30
CONTEXT_GIB: Final = 0.75
"""What CUDA, its libraries and NCCL take beside every tensor; not in the total."""
LOSS_CHUNK_BYTES: Final = 512 * 2**20
"""Scratch of the vocabulary loss on an accelerator (``model/vocabulary_loss.py``): logits in fp32,
and in 16 bits beside them."""


@dataclass(frozen=True, kw_only=True)
class MemorySetting:
    """All that decides about memory beside the model."""

    deepspeed: Mapping[str, Any] | None
    """The DeepSpeed file of the run as a mapping; None without DeepSpeed."""
    world_size: int
    compute_dtype: torch.dtype
    """bfloat16, float16 or float32."""
    recompute: bool
    """Gradient checkpointing."""
    writes_scores: bool
    """Whether attention is written out (``eager``)."""
    batch: LargestMicroBatch
    has_norm_kernel: bool
    """Whether PyTorch's RMS norm is one kernel there: on a GPU."""
    optimizer: OptimizerState = ADAM
    """What the optimizer keeps of trained weights, their fp32 masters left out."""
    in_four_bits: frozenset[str] = frozenset()
    """Names of weights that are held in 4 bits (QLoRA)."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """GiB on each GPU; the parts add up to the total."""

    weights: float
    gradients: float
    optimizer: float
    """Its state, and fp32 masters where they are not the weights."""
    activations: float
    logits: float
    """The vocabulary loss: its scratch and the gradients that it computes at once."""
    buffers: float
    """Buckets, parameters that are gathered for the moment, what the optimizer's step needs."""
    cpu: float
    """In the host's memory for each GPU (offloaded, or paged); not in the total."""

    @property
    def total(self) -> float:
        """GiB of tensors at the worst moment; ``CONTEXT_GIB`` come on top."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """GiB by part."""
        names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
        return {name: getattr(self, name) for name in names}


def estimate_memory(model: InternVLChatModel, setting: MemorySetting) -> MemoryEstimate:
    """Estimate what each GPU needs.

    Args:
        model: on the meta device, in the dtypes that a run without DeepSpeed holds its weights in,
            with what trains and which norms are fused decided.
        setting: of the run.
    """
    sizes = parameter_sizes(model, in_four_bits=setting.in_four_bits)
    held = holdings_of(sizes, setting)
    loss = _loss_bytes(model, setting)
    counted = count_activations(
        model,
        setting.batch,
        recompute=setting.recompute,
        writes_scores=setting.writes_scores,
        dtype=setting.compute_dtype,
        autocasts=setting.deepspeed is None and setting.compute_dtype != torch.float32,
        has_norm_kernel=setting.has_norm_kernel,
    )
    activations = counted.kept + counted.working
    # In the optimizer's step there are no activations left, nor gathered parameters.
    beside = max(held.gathered, held.stepping - activations - loss)
    return MemoryEstimate(
        weights=held.weights / GIB,
        gradients=held.gradients / GIB,
        optimizer=held.optimizer / GIB,
        activations=activations / GIB,
        logits=loss / GIB,
        buffers=(held.buffers + beside) / GIB,
        cpu=held.on_cpu / GIB,
    )


def holdings_of(sizes: list[ParameterSize], setting: MemorySetting) -> Holdings:
    """What a rank holds all through the run, in bytes."""
    if setting.deepspeed is None:
        return plain_holdings(sizes, world_size=setting.world_size, optimizer=setting.optimizer)
    total = sum(size.numel for size in sizes)
    zero = ZeroSettings.of(setting.deepspeed, num_parameters=total)
    weight_bytes = setting.compute_dtype.itemsize
    return zero_holdings(
        sizes,
        zero,
        world_size=setting.world_size,
        weight_bytes=weight_bytes,
        optimizer=setting.optimizer,
    )


def _loss_bytes(model: InternVLChatModel, setting: MemorySetting) -> int:
    """The loss over the vocabulary: chunks where the language model allows it, else all logits."""
    head: Any = model.get_output_embeddings()
    vocabulary, width = head.weight.shape
    item = setting.compute_dtype.itemsize
    rows = setting.batch.num_supervised
    if not logits_are_the_heads(model.language_model):
        tokens = setting.batch.rows * setting.batch.row_tokens
        return tokens * vocabulary * (2 * item + 4)  # logits, fp32 copies of them, their gradient
    per_row = vocabulary * (4 + (item if item < 4 else 0))
    chunk = min(max(LOSS_CHUNK_BYTES, 32 * per_row), rows * per_row)
    gradients = rows * width * item + (
        head.weight.numel() * item if head.weight.requires_grad else 0
    )
    return chunk + gradients
