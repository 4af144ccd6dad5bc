"""Muon; torch's own always runs its iteration in bfloat16, which many CPUs emulate slowly."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from examples.tiny_model.precision import has_bf16_products

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, https://kellerjordan.github.io/posts/muon/."""


def orthogonalize(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move the singular values of a (R, C) matrix near 1, its singular vectors left alone.

    ``dtype`` is what the iteration computes in.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.t() if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    x = x.to(dtype)
    for _ in range(steps):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrix.dtype)
    return x.t() if matrix.shape[0] > matrix.shape[1] else x


class Muon(Optimizer):
    """Momentum whose update is made orthogonal, scaled to AdamW's usual size.

    For two-dimensional weights. An orthogonal (R, C) update has a root mean square of
    1/sqrt(max(R, C)); AdamW's is about 0.2 (https://arxiv.org/abs/2502.16982).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = torch.bfloat16 if has_bf16_products() else torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        average = state.setdefault("momentum", torch.zeros_like(weight))
        average.lerp_(grad, 1 - group["momentum"])
        nesterov = grad.lerp(average, group["momentum"])
        update = orthogonalize(nesterov, dtype=self._dtype)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


class MuonWithAdamW:
    """The optimizer of both stages: Muon for the matrices of blocks, AdamW for the rest.

    Args:
        model: whose weights are trained; their gradients are clipped together, to a norm of 1.
        blocks: the weights of the blocks; those of other than two dimensions are AdamW's.
        muon_peak: highest rate of Muon.
        adam_peak: highest rate of AdamW.
    """

    def __init__(
        self, model: nn.Module, blocks: Iterable[Tensor], *, muon_peak: float, adam_peak: float
    ) -> None:
        self._model = model
        matrices = [p for p in blocks if p.ndim == 2]
        taken = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in taken]
        muon = Muon(matrices, lr=muon_peak, weight_decay=0.02)
        adamw = torch.optim.AdamW(
            others, lr=adam_peak, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self._peaks: list[tuple[Optimizer, float]] = [(muon, muon_peak), (adamw, adam_peak)]

    def step(self, share: float) -> None:
        """Clip, update at ``share`` of the highest rates, and clear the gradients."""
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, peak in self._peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
