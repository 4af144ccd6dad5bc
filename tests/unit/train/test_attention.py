"""Attention of packed rows, and the choice of a kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from internvl_chat.train.attention import choose_attention, sdpa_varlen_attention

CPU = torch.device("cpu")


def test_segments_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    lengths = (3, 1, 5)
    query = torch.randn(1, 4, 9, 8)
    key, value = torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)  # two query heads a group
    borders = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    out, _ = sdpa_varlen_attention(nn.Module(), query, key, value, None, cu_seq_lens_q=borders)

    segment = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    mask = (segment[:, None] == segment) & torch.ones(9, 9, dtype=torch.bool).tril()
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(out, wanted.transpose(1, 2), atol=1e-6, rtol=0)

    same, _ = sdpa_varlen_attention(nn.Module(), query, key, value, None, segment_lengths=lengths)
    assert torch.equal(out, same)


def test_without_segments_it_is_causal() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 6, 4)
    out, _ = sdpa_varlen_attention(nn.Module(), query, key, value, None, scaling=0.3)
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    assert torch.equal(out, wanted.transpose(1, 2))


@pytest.mark.parametrize(
    ("requested", "packed", "kernels"),
    [
        ("auto", False, ("sdpa", "sdpa")),
        ("auto", True, ("sdpa_varlen", "sdpa")),
        ("sdpa", True, ("sdpa_varlen", "sdpa")),
        ("eager", True, ("eager", "eager")),
        ("eager", False, ("eager", "eager")),
    ],
)
def test_choice_on_a_cpu(requested: str, packed: bool, kernels: tuple[str, str]) -> None:
    *chosen, reason = choose_attention(
        requested,  # type: ignore[arg-type]
        packed=packed,
        device=CPU,
        half_precision=True,
    )
    assert tuple(chosen) == kernels
    assert ("flash-attn" in reason) == (requested == "auto")
