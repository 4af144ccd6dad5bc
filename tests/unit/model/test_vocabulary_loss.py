"""VocabularyLoss: values and gradients against the definition, dtypes, heads, frozen parts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from internvl_chat.model import vocabulary_loss
from internvl_chat.model.vocabulary_loss import (
    VocabularyLoss,
    full_loss,
    is_plain_projection,
    select_targets,
)

ROWS, WIDTH, VOCABULARY = 50, 12, 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven chunks, the last one short."""
    monkeypatch.setattr(vocabulary_loss, "_rows_per_chunk", lambda *_: 8)


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    hidden = (torch.randn(ROWS, WIDTH) * 2).to(dtype).requires_grad_()
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).to(dtype)
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    return hidden, targets, head, torch.rand(ROWS) + 0.5


def definition(hidden: Tensor, targets: Tensor, weight: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    return (losses * weights).sum()


def test_value_and_gradients() -> None:
    hidden, targets, head, weights = make_inputs()
    found = VocabularyLoss()(hidden, targets, head, weights) * 0.25
    found.backward()
    twin, copy = hidden.detach().requires_grad_(), head.weight.detach().requires_grad_()
    expected = definition(twin, targets, copy, weights) * 0.25
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad, twin.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(head.weight.grad, copy.grad, rtol=1e-5, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    hidden, targets, head, weights = make_inputs()
    found = VocabularyLoss()(hidden * 1e4, targets, head, weights)
    expected = definition(hidden * 1e4, targets, head.weight, weights)
    assert torch.isfinite(found)
    torch.testing.assert_close(found, expected)


def test_frozen_head_gets_no_gradient_and_no_buffer() -> None:
    hidden, targets, head, weights = make_inputs()
    head.requires_grad_(False)
    loss = VocabularyLoss()(hidden, targets, head, weights)
    saved = loss.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert [None if t is None else tuple(t.shape) for t in saved] == [(ROWS, WIDTH), None]
    loss.backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


def test_no_gradient_wanted() -> None:
    hidden, targets, head, weights = make_inputs()
    expected = VocabularyLoss()(hidden, targets, head, weights)
    with torch.no_grad():
        found = VocabularyLoss()(hidden, targets, head, weights)
    assert torch.equal(found, expected.detach())
    assert not found.requires_grad


def test_bf16_loss_is_float32_and_accurate() -> None:
    hidden, targets, head, weights = make_inputs(torch.bfloat16)
    found = VocabularyLoss()(hidden, targets, head, weights)
    found.backward()
    exact = definition(hidden.double(), targets, head.weight.double(), weights.double())
    assert found.dtype == torch.float32
    assert abs(found.item() - exact.item()) < 1e-6 * exact.item()  # a bf16 sum: up to 4e-3
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    twin = hidden.detach().double().requires_grad_()
    definition(twin, targets, head.weight.detach().double(), weights.double()).backward()
    assert twin.grad is not None
    torch.testing.assert_close(hidden.grad.double(), twin.grad, rtol=2**-8, atol=1e-6)


CUDA = pytest.param(
    "cuda",
    marks=(
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ),
)
ROUNDING = {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float64: 1e-6}


def distance(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_gradients_in_the_dtype_of_the_head(dtype: torch.dtype, device: str) -> None:
    """As on a GPU, where nothing is computed in fp32 but the softmax: some rows weigh nothing, and
    of some the model is so sure that in 16 bits the target's probability is 1."""
    hidden, targets, head, weights = (x.to(device) for x in make_inputs(dtype))
    weights[::5] = 0
    with torch.no_grad():
        hidden[::3] = 20 * F.normalize(head.weight[targets[::3]], dim=1)
    hidden = hidden.detach().requires_grad_()
    row_losses = torch.zeros_like(weights)
    apply = vocabulary_loss._LinearCrossEntropy.apply
    found = apply(hidden, head.weight, targets, weights, row_losses)
    found.backward()

    twin, copy = (x.detach().double().requires_grad_() for x in (hidden, head.weight))
    logits = F.linear(twin, copy)
    if device == "cpu":
        logits = logits + (logits.to(dtype) - logits).detach()  # its products come out rounded
    losses = F.cross_entropy(logits, targets, reduction="none")
    expected = (losses * weights).sum()
    expected.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(row_losses.double(), losses, rtol=1e-4, atol=1e-6)
    assert hidden.grad is not None
    assert twin.grad is not None
    assert hidden.grad.dtype == dtype
    assert distance(hidden.grad, twin.grad) < ROUNDING[dtype]
    assert distance(head.weight.grad, copy.grad) < ROUNDING[dtype]
    sure = (losses < 1e-2) & (losses > 1e-5) & (weights > 0)
    assert sure.sum() > 3
    # Their gradients are small, and right all the same.
    assert distance(hidden.grad[sure], twin.grad[sure]) < 2 * ROUNDING[dtype]


def test_cpu_computes_in_fp32_whatever_the_dtype() -> None:
    """Low-precision products are emulated on CPUs; autocast does not bring them in either."""
    hidden, targets, head, weights = make_inputs()
    expected = VocabularyLoss()(hidden, targets, head, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = VocabularyLoss()(hidden, targets, head, weights)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("rows", [ROWS, 0])
def test_other_heads_are_called_in_chunks(rows: int) -> None:
    """A bias, or a subclass (LoRA, int8): through the module, with the same result."""
    hidden, targets, _, weights = make_inputs()
    head = nn.Linear(WIDTH, VOCABULARY, bias=True)
    calls: list[int] = []
    head.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[0]))
    found = VocabularyLoss()(hidden[:rows], targets[:rows], head, weights[:rows])
    found.backward()
    assert max(calls) <= 8
    gradient = head.weight.grad
    assert gradient is not None
    if rows == 0:
        assert found.item() == 0
        assert gradient.count_nonzero() == 0
        return
    losses = F.cross_entropy(head(hidden), targets, reduction="none")
    expected = (losses * weights).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, head.weight)[0])


def with_bias(_: nn.Linear) -> nn.Module:
    return nn.Linear(WIDTH, VOCABULARY, bias=True)


def kept_by_accelerate(head: nn.Linear) -> nn.Module:
    """As ``device_map`` leaves it: on the meta device, its weight brought for each call."""
    return cpu_offload(head, execution_device=torch.device("cpu"))


def weight_normalised(head: nn.Linear) -> nn.Module:
    """By a hook, as before parametrisations: ``head.weight`` is the one of the last call."""
    with warnings.catch_warnings(action="ignore"):
        head = nn.utils.weight_norm(head)
    with torch.no_grad():
        head.weight_g.mul_(1.5)  # type: ignore[operator]
    return head


def parametrised(head: nn.Linear) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(head)


def pruned(head: nn.Linear) -> nn.Module:
    nn.utils.prune.random_unstructured(head, "weight", 0.5)
    with torch.no_grad():
        head.weight_orig.mul_(1.5)  # type: ignore[operator]
    return head


def hooked_before(head: nn.Linear) -> nn.Module:
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    return head


def hooked_after(head: nn.Linear) -> nn.Module:
    head.register_forward_hook(lambda _, __, output: output * 2)
    return head


def with_a_forward_of_its_own(head: nn.Linear) -> nn.Module:
    head.forward = lambda x: F.linear(x, head.weight) * 2  # type: ignore[method-assign]
    return head


def in_eight_bits(head: nn.Linear) -> nn.Module:
    twin = bitsandbytes.nn.Linear8bitLt(WIDTH, VOCABULARY, bias=False, has_fp16_weights=False)
    twin.load_state_dict(head.state_dict())
    return twin.to("cpu")


def in_four_bits(head: nn.Linear) -> nn.Module:
    twin = bitsandbytes.nn.Linear4bit(WIDTH, VOCABULARY, bias=False, quant_type="nf4")
    twin.load_state_dict(head.state_dict())
    return twin.to("cpu")


class Doubled(Tensor):
    """A weight that is more than its numbers, as torchao's and sharded ones are."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out.as_subclass(Tensor) * 2 if func is F.linear else out


def with_a_weight_of_another_class(head: nn.Linear) -> nn.Module:
    head.weight = nn.Parameter(head.weight.detach().as_subclass(Doubled))
    return head


def with_an_adapter(head: nn.Linear) -> nn.Module:
    settings = LoraConfig(target_modules=["head"], init_lora_weights=False)
    wrapped: Any = get_peft_model(nn.ModuleDict({"head": head}), settings)  # type: ignore[arg-type]
    return wrapped.base_model.model["head"]


def compiled(head: nn.Linear) -> nn.Module:
    return torch.compile(head, backend="eager")  # type: ignore[return-value]


OTHER_HEADS = [
    with_bias,
    kept_by_accelerate,
    weight_normalised,
    parametrised,
    pruned,
    hooked_before,
    hooked_after,
    with_a_forward_of_its_own,
    in_eight_bits,
    in_four_bits,
    with_a_weight_of_another_class,
    with_an_adapter,
    compiled,
]


@pytest.mark.parametrize("make", OTHER_HEADS, ids=lambda make: make.__name__)
def test_a_head_is_what_its_call_computes(make: Callable[[nn.Linear], nn.Module]) -> None:
    """Whatever keeps, changes or replaces its weight: the loss is of the module's own logits."""
    hidden, targets, plain, weights = make_inputs()
    head = make(plain)
    found = VocabularyLoss()(hidden, targets, head, weights)
    (gradient,) = torch.autograd.grad(found, hidden)
    logits = torch.cat([head(rows) for rows in hidden.split(8)])  # bits: rounded by the chunk
    expected = (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, hidden)[0])


def test_a_head_without_values_is_refused() -> None:
    """On the meta device, and nobody there to bring its weight."""
    hidden, targets, head, weights = make_inputs()
    with pytest.raises(ValueError, match="projection's weight is on the meta device"):
        VocabularyLoss()(hidden, targets, head.to("meta"), weights)


def test_zero_3_is_no_interception() -> None:
    """Its hooks are on every module, and bring a weight wherever it is read: the fast way stays."""
    _, _, head, _ = make_inputs()
    head.register_forward_pre_hook(lambda *_: None)
    assert not is_plain_projection(head, torch.device("cpu"))
    head.weight.ds_id = 0  # type: ignore[attr-defined]
    assert is_plain_projection(head, torch.device("cpu"))


def test_no_rows_is_a_zero_on_the_graph() -> None:
    hidden, targets, head, weights = make_inputs()
    loss = VocabularyLoss()(hidden[:0], targets[:0], head, weights[:0])
    loss.backward()
    assert loss.item() == 0
    assert head.weight.grad is not None
    assert head.weight.grad.count_nonzero() == 0


def test_losses_by_row() -> None:
    hidden, targets, head, weights = make_inputs()
    module = VocabularyLoss()
    module(hidden, targets, head, weights)
    expected = F.cross_entropy(head(hidden), targets, reduction="none")
    torch.testing.assert_close(module.row_losses, expected.detach())


def test_second_backward_is_refused() -> None:
    hidden, targets, head, weights = make_inputs()
    loss = VocabularyLoss()(hidden, targets, head, weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_targets_are_shifted_by_one_and_weighted() -> None:
    """Position t predicts token t + 1, within its row."""
    labels = torch.tensor([[-100, 5, 6], [7, -100, 8]])
    targets = select_targets(labels, None, None)
    assert targets.positions.tolist() == [0, 1, 4]
    assert targets.tokens.tolist() == [5, 6, 8]
    assert targets.weights.tolist() == [1, 1, 1]
    assert targets.scale.item() == pytest.approx(1 / 3)
    weight = torch.tensor([[9.0, 0.5, 1.5], [9.0, 9.0, 2.0]])
    targets = select_targets(labels, weight, None)
    assert targets.weights.tolist() == [0.5, 1.5, 2.0]
    assert targets.scale.item() == 0.25
    assert select_targets(labels, weight, 8.0).scale.item() == 0.125
    assert select_targets(torch.full((1, 3), -100), None, None).scale.item() == 0


def test_targets_that_are_shifted_already() -> None:
    """As sequence parallelism has them: the last position of a row may have one, too."""
    labels = torch.tensor([[-100, 5, 6], [7, -100, 8]])
    weight = torch.tensor([[9.0, 0.5, 1.5], [1.0, 9.0, 2.0]])
    targets = select_targets(labels, weight, 10.0, are_shifted=True)
    assert targets.positions.tolist() == [1, 2, 3, 5]
    assert targets.tokens.tolist() == [5, 6, 7, 8]
    assert targets.weights.tolist() == [0.5, 1.5, 1.0, 2.0]


def test_loss_from_all_logits() -> None:
    """Equal logits over 4 tokens: every cross entropy is log 4, whatever the token."""
    labels = torch.tensor([[-100, 1, 2]])
    targets = select_targets(labels, torch.tensor([[0.0, 1.0, 3.0]]), 2.0)
    loss = full_loss(torch.zeros(1, 3, 4), targets)
    assert loss.item() == pytest.approx((1 + 3) * math.log(4) / 2)
