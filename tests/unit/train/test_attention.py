"""Attention of packed rows, and the choice of a kernel."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask

from internvl_chat.train import attention
from internvl_chat.train.attention import (
    choose_attention,
    sdpa_varlen_attention,
    torch_varlen_attention,
)
from internvl_chat.train.inputs import forward_inputs

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "half_precision", "lengths_repeat", "cudnn"),
    [
        ("cuda", True, False, False),
        ("cuda", True, True, True),
        ("cuda", False, False, None),
        ("cpu", True, False, None),
    ],
)
def test_cudnn_plans_anew_for_each_length(
    device: str,
    half_precision: bool,
    lengths_repeat: bool,
    cudnn: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", told.append)
    note = attention.settle_sdpa(
        torch.device(device), half_precision=half_precision, lengths_repeat=lengths_repeat
    )
    assert told == ([] if cudnn is None else [cudnn])
    assert (note is None) is (cudnn is None)
    assert not note or ("without cuDNN's" in note) is not cudnn


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
    chosen = choose_attention(
        requested,  # type: ignore[arg-type]
        packed=packed,
        device=CPU,
        half_precision=True,
    )
    assert (chosen.llm, chosen.vision) == kernels
    if requested != "auto":
        assert chosen.reason.startswith(f"as asked: {requested}")
    elif packed:
        assert "needs a GPU, this run is on cpu" in chosen.reason


@pytest.mark.parametrize(
    ("requested", "packed", "half", "torch_has_it", "flash_attn", "kernels"),
    [
        ("auto", True, True, True, True, ("torch_varlen", "sdpa")),
        ("auto", True, True, True, False, ("torch_varlen", "sdpa")),
        ("auto", True, True, False, True, ("flash_attention_2", "flash_attention_2")),
        ("auto", True, True, False, False, ("sdpa_varlen", "sdpa")),
        ("auto", True, False, True, True, ("sdpa_varlen", "sdpa")),
        ("auto", False, True, True, True, ("sdpa", "sdpa")),
        ("sdpa", True, True, True, True, ("sdpa_varlen", "sdpa")),
        ("eager", True, True, True, True, ("eager", "eager")),
        ("flash_attention_2", True, True, True, True, ("flash_attention_2", "flash_attention_2")),
        ("flash_attention_2", False, True, True, True, ("flash_attention_2", "flash_attention_2")),
    ],
)
def test_choice_on_a_gpu(
    requested: str,
    packed: bool,
    half: bool,
    torch_has_it: bool,
    flash_attn: bool,
    kernels: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "varlen_attn", by_segments if torch_has_it else None)
    found = importlib.machinery.ModuleSpec("flash_attn", None) if flash_attn else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    chosen = choose_attention(
        requested,  # type: ignore[arg-type]
        packed=packed,
        device=torch.device("cuda"),
        half_precision=half,
    )
    assert (chosen.llm, chosen.vision) == kernels


def test_an_old_gpu_takes_no_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    chosen = choose_attention("auto", packed=True, device=torch.device("cuda"), half_precision=True)
    assert chosen.llm == "sdpa_varlen"
    assert "Ampere" in chosen.reason


def by_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What torch's varlen_attn computes, of (T, heads, width), with its rules."""
    assert query.shape[-1] % 8 == 0
    assert query.dtype == key.dtype == value.dtype
    assert window_size == (-1, 0), "causal attention"
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    parts = []
    for first, last in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (row[first:last].transpose(0, 1)[None] for row in (query, key, value))
        part = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def with_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel, which wants a GPU, computed on the CPU."""
    monkeypatch.setattr(attention, "varlen_attn", by_segments)
    keywords = {grouped: attention._varlen_keywords(grouped) for grouped in (False, True)}
    monkeypatch.setattr(attention, "_VARLEN_KEYWORDS", keywords)


@pytest.mark.usefixtures("with_varlen")
@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("lengths", [(3, 1, 5), (9,), (1,) * 9])
def test_one_call_equals_segment_by_segment(
    width: int, groups: int, lengths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, 9, width, requires_grad=True) for heads in (4, groups, groups)]
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    wanted, _ = sdpa_varlen_attention(nn.Module(), *inputs, None, segment_lengths=lengths)
    out, _ = torch_varlen_attention(
        nn.Module(), *inputs, None, cu_seq_lens_q=borders, max_length_q=max(lengths)
    )
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=0)
    into = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(one, inputs, into) for one in (out, wanted))
    for grad, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("with_varlen")
def test_under_autocast_all_three_are_in_half_precision() -> None:
    query, key = torch.randn(2, 1, 2, 6, 8)
    value = torch.randn(1, 2, 6, 8, dtype=torch.bfloat16)
    borders = torch.tensor([0, 2, 6], dtype=torch.int32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = torch_varlen_attention(
            nn.Module(), query, key, value, None, cu_seq_lens_q=borders, max_length_q=4
        )
    assert out.dtype == torch.bfloat16


def test_dropout_goes_by_segments() -> None:
    """The kernel would leave it out without a word."""
    query, key, value = torch.randn(3, 1, 2, 6, 8)
    borders = torch.tensor([0, 2, 6], dtype=torch.int32)
    call = partial(
        torch_varlen_attention,
        nn.Module(),
        query,
        key,
        value,
        None,
        dropout=0.5,
        cu_seq_lens_q=borders,
        max_length_q=4,
    )
    torch.manual_seed(0)
    first, _ = call()
    second, _ = call()
    assert not torch.equal(first, second)


def test_the_installed_torch_knows_the_keywords() -> None:
    if attention.varlen_attn is None:
        pytest.skip("this torch has no varlen_attn")
    known = inspect.signature(attention.varlen_attn).parameters
    for grouped in (False, True):
        assert set(attention._VARLEN_KEYWORDS[grouped]) <= set(known)
    assert {"window_size", "is_causal"} & set(attention._VARLEN_KEYWORDS[False])


@pytest.mark.parametrize("kernel", ["sdpa_varlen", "torch_varlen"])
def test_no_mask_is_made_for_packed_rows(kernel: str) -> None:
    """A mask of T x T is large, and looking for samples in the positions waits for the device."""
    attention.register_attention()
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    config._attn_implementation = kernel
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    states = torch.zeros(1, 5, 16, device="meta")  # which has no values to look at
    mask = create_causal_mask(
        config=config,
        inputs_embeds=states,
        attention_mask=None,
        past_key_values=None,
        position_ids=positions.to("meta"),
    )
    assert mask is None


@pytest.mark.parametrize("kernel", attention.PACKED_BY_BORDERS)
def test_a_kernel_that_wants_borders_gets_them(kernel: str) -> None:
    """Without them the samples of a row would see each other, and nothing would say so."""
    ids = torch.zeros(1, 5, dtype=torch.long)
    borders = torch.tensor([0, 3, 5], dtype=torch.int32)
    batch = {
        "input_ids": ids,
        "labels": ids,
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": 3,
        "max_length_k": 3,
        "segment_lengths": (3, 2),
    }
    taken = forward_inputs(
        batch, attention=kernel, normalize_type="imagenet", pixel_dtype=torch.float32
    )
    assert torch.equal(taken["cu_seq_lens_q"], borders)
    assert taken["max_length_q"] == 3
    assert "position_ids" in taken
