"""The kernels that training chooses for bf16, against attention written out in fp32.

Legend: H query heads, G key/value heads, T tokens, E head width, N tiles, S tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from internvl_chat.model.modeling_intern_vit import attention_function
from internvl_chat.train.attention import choose_attention, register_attention

pytestmark = pytest.mark.gpu

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
SEGMENTS = {
    "one": (1024,),
    "of length 1": (1,) * 64,
    "mixed": (1, 700, 2, 129, 64, 128),
}
HEADS = {"all": (8, 8), "grouped": (8, 2), "seven a group": (7, 1)}
ROUNDING = 2.0**-8
"""Of bf16: half a unit in the last place of numbers near 1 is 2^-9, and two are added up."""
FLOOR = 1e-4
"""Of inputs and gradients near 1: what is zero when written out is a difference in a kernel."""


def eager(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax written out, in the inputs' dtype: (B, H, T, E), (B, G, T, E) -> (B, T, H, E)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def within_segments(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(T, T): who sees whom in a packed row."""
    numbers = torch.arange(len(lengths), device=device)
    segment = numbers.repeat_interleave(torch.tensor(lengths, device=device))
    return (segment[:, None] == segment).tril()


def out_and_gradients(attend: Attend, inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Result and gradients of query, key and value, in fp32."""
    leaves = [states.detach().clone().requires_grad_() for states in inputs]
    out = attend(*leaves)
    (out * weights.to(out.dtype)).sum().backward()
    return [out.float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]


def assert_as_exact_as_eager(attend: Attend, written_out: Attend, inputs: list[Tensor]) -> None:
    """The kernel is at most twice as far from fp32 as the same arithmetic written out in bf16.

    The rule of flash-attn's own tests. Beside it a rounding of the largest value is allowed, and
    one for each head that shares keys, whose gradients are rounded before they are added up:
    some figures are exact when written out (the gradients of a segment of one token, for one).
    """
    size = written_out(*inputs).shape
    weights = torch.randn(size, device=inputs[0].device).to(inputs[0].dtype)
    exact = out_and_gradients(written_out, [states.float() for states in inputs], weights)
    plain = out_and_gradients(written_out, inputs, weights)
    found = out_and_gradients(attend, inputs, weights)
    sharing = inputs[0].shape[1] // inputs[1].shape[1]
    for name, kernel, rounded, true in zip(
        ("out", "query", "key", "value"), found, plain, exact, strict=True
    ):
        roundings = sharing if name in ("key", "value") else 1
        allowed = 2 * (rounded - true).abs().max() + roundings * ROUNDING * true.abs().max() + FLOOR
        off = (kernel - true).abs().max()
        assert off <= allowed, f"{name}: {off:.2e} from fp32, allowed {allowed:.2e}"


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_packed_rows(device: torch.device, segments: str, heads: str, width: int) -> None:
    register_attention()
    chosen = choose_attention("auto", packed=True, device=device, half_precision=True)
    if device.type == "cuda":
        assert chosen.llm in ("torch_varlen", "flash_attention_2"), chosen.reason
    kernel = ALL_ATTENTION_FUNCTIONS[chosen.llm]
    lengths, (num_heads, num_groups) = SEGMENTS[segments], HEADS[heads]
    total = sum(lengths)
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, number, total, width, device=device, dtype=torch.bfloat16)
        for number in (num_heads, num_groups, num_groups)
    ]
    ends = torch.tensor((0, *lengths), device=device).cumsum(0).to(torch.int32)
    module = nn.Module().train()
    module.is_causal = True  # type: ignore[assignment]
    borders: dict[str, Any] = {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "segment_lengths": lengths,
    }

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kernel(module, query, key, value, None, scaling=width**-0.5, **borders)[0]

    allowed = within_segments(lengths, device)
    assert_as_exact_as_eager(attend, lambda q, k, v: eager(q, k, v, allowed), inputs)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("tiles", [1, 5])
def test_vision_tower(device: torch.device, tiles: int, width: int) -> None:
    """As the tower lays its tensors out: heads apart by a view, on a CPU fewer tokens."""
    register_attention()
    chosen = choose_attention("auto", packed=True, device=device, half_precision=True)
    kernel = attention_function(chosen.vision)
    tokens, heads = (1025, 25) if device.type == "cuda" else (65, 5)
    torch.manual_seed(0)
    inputs = [
        torch.randn(tiles, tokens, heads * width, device=device, dtype=torch.bfloat16)
        for _ in range(3)
    ]

    def apart(states: Tensor) -> Tensor:
        return states.view(tiles, tokens, heads, width).transpose(1, 2)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = apart(query), apart(key), apart(value)
        module = nn.Module().train()
        return kernel(module, *parts, None, scaling=width**-0.5, is_causal=False)[0]

    def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return eager(apart(query), apart(key), apart(value), None)

    assert_as_exact_as_eager(attend, written_out, inputs)
