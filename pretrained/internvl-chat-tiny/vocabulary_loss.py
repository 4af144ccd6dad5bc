"""The loss over the vocabulary, without all the logits: chunked linear cross entropy.

Shapes: ``B`` rows, ``T`` tokens, ``D`` width of the language model, ``V`` its vocabulary, ``R``
supervised positions.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .constants import IGNORE_INDEX

_CHUNK_BYTES = {"cpu": 128 * 2**20}
_CHUNK_BYTES_ACCELERATOR = 512 * 2**20
_MM_OVERLOADS = torch.ops.aten.mm.overloads()  # of torch 2.8 and newer: into another dtype


def _rows_per_chunk(vocabulary_size: int, device: torch.device, bytes_per_logit: int = 4) -> int:
    """Rows whose logits fill the scratch buffers of the vocabulary loss.

    Each chunk reads and writes the head's gradient once, so that more and smaller ones cost time.
    """
    budget = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ACCELERATOR)
    return max(32, budget // (bytes_per_logit * vocabulary_size))


def _logits_into(scratch: Tensor, inputs: Tensor, head: Tensor) -> None:
    """``inputs @ head.T`` in the dtype of ``scratch``, without rounding in between where the
    device's library can."""
    if scratch.dtype == inputs.dtype:
        torch.mm(inputs, head.t(), out=scratch)
    elif inputs.is_cuda and torch.version.hip is None and "dtype_out" in _MM_OVERLOADS:
        torch.mm(inputs, head.t(), out_dtype=scratch.dtype, out=scratch)
    else:
        scratch.copy_(torch.mm(inputs, head.t()))


class _LinearCrossEntropy(torch.autograd.Function):
    """``sum_r weight_r * CE(hidden_r @ head.T, target_r)``, logits alive one chunk at a time.

    The gradients are computed in the forward pass, while a chunk's softmax is at hand; the
    backward pass only scales them. Built-in ``linear_cross_entropy`` does the same, but takes no
    weight per row and returns the loss in the dtype of its inputs.

    What touches all of a chunk's logits is memory traffic beside the three matrix products, so
    there are two such passes: log-softmax in place (a row is read before it is overwritten), and
    its exponential. Weights are multiplied to the sides of width D, not of V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        row_losses: Tensor,
    ) -> Tensor:
        rows, dtype = hidden.shape[0], head.dtype
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_head = torch.empty_like(head) if wants_head else None
        if grad_head is not None and rows == 0:
            grad_head.zero_()
        exact = torch.promote_types(dtype, torch.float32)
        has_second = dtype != exact and (wants_hidden or wants_head)
        size = exact.itemsize + (dtype.itemsize if has_second else 0)
        step = _rows_per_chunk(head.shape[0], hidden.device, size)
        scratch = hidden.new_empty((min(step, rows), head.shape[0]), dtype=exact)
        narrow = torch.empty_like(scratch, dtype=dtype) if has_second else scratch
        for start in range(0, rows, step):
            chunk = slice(start, start + step)
            inputs, weight = hidden[chunk], weights[chunk].unsqueeze(1)
            target = targets[chunk].unsqueeze(1)
            log_softmax = scratch[: len(inputs)]
            _logits_into(log_softmax, inputs, head)
            torch.log_softmax(log_softmax, 1, out=log_softmax)
            losses = -log_softmax.gather(1, target)
            row_losses[chunk] = losses.squeeze(1)
            if not (wants_hidden or wants_head):
                continue
            # softmax - onehot; at the target from the loss itself, as a probability near 1 in 16
            # bits would leave nothing of the difference.
            grad_logits = torch.exp(log_softmax, out=narrow[: len(inputs)])
            grad_logits.scatter_(1, target, torch.expm1(-losses).to(dtype))
            if grad_hidden is not None:
                torch.mm(grad_logits, head, out=grad_hidden[chunk])
                grad_hidden[chunk].mul_(weight)
            if grad_head is not None:
                weighted = (inputs * weight).to(dtype)
                grad_head.addmm_(grad_logits.t(), weighted, beta=0 if start == 0 else 1)
        ctx.save_for_backward(grad_hidden, grad_head)
        return (weights * row_losses).sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_loss: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # In place: the head's gradient may be the largest tensor of the step. Autograd refuses a
        # second backward through the same graph, which would scale twice.
        grads = [
            None if grad is None else grad.mul_(grad_loss.to(grad.dtype))
            for grad in ctx.saved_tensors
        ]
        return grads[0], grads[1], None, None, None


class VocabularyLoss(nn.Module):
    """Weighted sum of cross entropies behind a vocabulary projection, without all the logits.

    It reads ``head.weight`` inside its own forward, where DeepSpeed's ZeRO-3 gathers it. A head
    whose weight is not all there is to it (:func:`is_plain_projection`) is called chunk by chunk
    instead, and again in the backward pass.
    """

    row_losses: Tensor | None = None
    """(R,) float32, unweighted, of the last call: for a loss by dataset. Takes no gradient."""

    def forward(self, hidden: Tensor, targets: Tensor, head: nn.Module, weights: Tensor) -> Tensor:
        """Compute the sum.

        Args:
            hidden: (R, D) states of the supervised positions.
            targets: (R,) the next tokens.
            head: from D to V.
            weights: (R,) float32, one per position.

        Returns:
            A float32 scalar; for R = 0 a zero that still hangs on ``hidden`` and ``head``.

        Raises:
            ValueError: the head's weight is kept nowhere that its module could bring it from.
        """
        self.row_losses = torch.zeros_like(weights)
        if not is_plain_projection(head, hidden.device):
            return self._through_module(hidden, targets, head, weights)
        weight: Tensor = head.weight  # type: ignore[assignment]
        device = hidden.device.type
        dtype = weight.dtype
        if device == "cpu":
            dtype = torch.float32  # low-precision products are emulated there, slowly
        elif torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _LinearCrossEntropy.apply(
                hidden.to(dtype), weight.to(dtype), targets, weights, self.row_losses
            )

    def _through_module(
        self, hidden: Tensor, targets: Tensor, head: nn.Module, weights: Tensor
    ) -> Tensor:
        if not hidden.is_meta:
            _require_values(head)
        if hidden.shape[0] == 0:
            return head(hidden.new_zeros(1, hidden.shape[1])).float().sum() * 0 + hidden.sum() * 0
        out_features = getattr(head, "out_features", 2**16)
        step = _rows_per_chunk(out_features, hidden.device)

        def chunk_loss(rows: Tensor, target: Tensor) -> Tensor:
            logits = head(rows).float()
            target = target.to(logits.device)
            return F.cross_entropy(logits, target, reduction="none").to(rows.device)

        parts = [
            checkpoint(chunk_loss, *chunk, use_reentrant=False)
            for chunk in zip(hidden.split(step), targets.split(step), strict=True)
        ]
        losses = torch.cat(parts)
        self.row_losses = losses.detach()
        return (losses * weights).sum()

    def of_logits(self, logits: Tensor, targets: Targets) -> Tensor:
        """The same from all logits (B, T, V), divided as ``targets`` has it."""
        losses = _losses_of_rows(logits, targets)
        self.row_losses = losses.detach()
        return _weighted(losses, targets)


def is_plain_projection(head: nn.Module, device: torch.device) -> bool:
    """Whether ``head`` computes ``x @ head.weight.T`` and nothing more, with the weight at hand.

    It does not where the weight is quantised or sharded (layer or tensor have a class of their
    own), where there is a bias, an adapter or a parametrisation, or where somebody hangs on the
    module's call: accelerate, which brings an offloaded weight then, FSDP, ``weight_norm``,
    pruning, a user's hook. ZeRO-3 hangs on every module, but gathers a weight wherever it is read.

    Args:
        head: from D to V.
        device: where the states are.
    """
    if type(head) is not nn.Linear or head.bias is not None or is_intercepted(head):
        return False
    weight = head.weight
    if hasattr(weight, "ds_id"):
        return True
    return (
        type(weight) in (nn.Parameter, Tensor)
        and weight.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        and weight.device == device
    )


def is_intercepted(module: nn.Module) -> bool:
    """Whether calling ``module`` does more, or something else, than its class says.

    Hooks of ZeRO-3, which are on every module and bring parameters wherever they are read, do not
    count.
    """
    if "forward" in vars(module):  # accelerate puts its own there
        return True
    if hasattr(next(module.parameters(), None), "ds_id"):
        return False
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return any(map(len, hooks))


def _require_values(head: nn.Module) -> None:
    """Refuse weights on the meta device that nobody brings; a product with them is random."""
    for module in head.modules():
        parameters = module.parameters(recurse=False)
        if not is_intercepted(module) and any(parameter.is_meta for parameter in parameters):
            raise ValueError(
                "the vocabulary projection's weight is on the meta device, without values: load "
                "it, or let accelerate (device_map) say where it is kept"
            )


LOGIT_SETTINGS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)
"""Settings by which some language models change their logits after the head."""


def logits_are_the_heads(language_model: nn.Module) -> bool:
    """Whether a language model is its decoder, then its head on the last state, and nothing more.

    Only then may the two be called without it.

    Args:
        language_model: a causal LM of transformers, in a wrapper of PEFT or bare.
    """
    adapter = getattr(language_model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        return False  # the wrapper puts tokens before the text
    unwrap = getattr(language_model, "get_base_model", None)
    model: Any = language_model if unwrap is None else unwrap()
    settings = (getattr(model.config, name, None) for name in LOGIT_SETTINGS)
    if any(value not in (None, 1, 1.0) for value in settings):
        return False
    if is_intercepted(language_model) or is_intercepted(model):
        return False
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    rest = [child for child in model.children() if child is not head]
    is_own = any(child is head for child in model.children())  # BERT's is a part of one
    return is_own and len(rest) == 1 and any(part is decoder for part in rest[0].modules())


@dataclass(frozen=True)
class Targets:
    """The supervised positions of a batch, shifted: position ``t`` predicts token ``t + 1``."""

    positions: Tensor
    """(R,) into the flattened (B*T)."""
    tokens: Tensor
    """(R,)"""
    weights: Tensor
    """(R,) float32."""
    scale: Tensor
    """0-d float32, what the weighted sum is multiplied with."""


def select_targets(
    labels: Tensor,
    loss_weight: Tensor | None,
    loss_denominator: float | Tensor | None,
    *,
    are_shifted: bool = False,
) -> Targets:
    """Find what the loss is taken over.

    Args:
        labels: (B, T), ``IGNORE_INDEX`` off the loss mask.
        loss_weight: (B, T) float32, aligned with ``labels``; ``None`` weighs each position 1.
        loss_denominator: what the weighted sum is divided by; ``None`` takes the sum of the
            weights. Where it is zero, so is the loss.
        are_shifted: a label stands at the position that predicts it, not at its token's own.
    """
    if not are_shifted:
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        loss_weight = None if loss_weight is None else F.pad(loss_weight[:, 1:], (0, 1))
    flat = labels.flatten()
    positions = (flat != IGNORE_INDEX).nonzero().squeeze(1)
    tokens = flat[positions]
    if loss_weight is None:
        weights = torch.ones(positions.shape, dtype=torch.float32, device=labels.device)
    else:
        weights = loss_weight.float().flatten()[positions]
    if loss_denominator is None:
        denominator = weights.sum()
    else:
        denominator = torch.as_tensor(
            loss_denominator, dtype=torch.float32, device=labels.device
        ).squeeze()
    empty = denominator == 0
    scale = torch.where(empty, 0.0, 1.0 / torch.where(empty, 1.0, denominator))
    return Targets(positions, tokens, weights, scale)


def full_loss(logits: Tensor, targets: Targets) -> Tensor:
    """The same loss from all logits (B, T, V)."""
    return _weighted(_losses_of_rows(logits, targets), targets)


def _losses_of_rows(logits: Tensor, targets: Targets) -> Tensor:
    """(R,) cross entropies, float32."""
    rows = logits.flatten(0, 1)[targets.positions.to(logits.device)].float()
    return F.cross_entropy(rows, targets.tokens.to(logits.device), reduction="none")


def _weighted(losses: Tensor, targets: Targets) -> Tensor:
    weights, scale = targets.weights.to(losses.device), targets.scale.to(losses.device)
    return (losses * weights).sum() * scale
