"""Norms that are one kernel each: the same arithmetic, names and parameters as written out."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.granite.modeling_granite import GraniteRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from internvl_chat.model.modeling_intern_vit import InternRMSNorm
from internvl_chat.train.finetune import prepare_blocks
from internvl_chat.train.fused_norms import FusedRMSNorm, fuse_norms, wants_fused_norms
from tests.support.models import make_model

WIDTH, EPS = 64, 1e-3
KINDS = (
    GraniteRMSNorm,
    InternRMSNorm,
    LlamaRMSNorm,
    MistralRMSNorm,
    Phi3RMSNorm,
    Qwen2RMSNorm,
    Qwen3RMSNorm,
)


def filled(kind: type[nn.Module]) -> Any:
    """A norm of this class whose weights differ."""
    norm = kind(WIDTH, eps=EPS)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(WIDTH, generator=generator) + 0.5
    norm.weight = nn.Parameter(weights)
    return norm


def fused(norm: Any) -> Any:
    holder = nn.ModuleDict({"norm": norm})
    assert fuse_norms(holder) == 1
    return holder["norm"]


def results(norm: Any, states: Tensor) -> list[Tensor]:
    """Output, and gradients of input and weight."""
    leaf = states.detach().clone().requires_grad_()
    norm.weight.grad = None
    out = norm(leaf)
    (out * torch.linspace(-1, 1, WIDTH, dtype=out.dtype)).sum().backward()
    assert leaf.grad is not None
    return [out.detach(), leaf.grad, norm.weight.grad]


def states(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, WIDTH, generator=generator).to(dtype) / 30  # of eps's size, squared


@pytest.mark.parametrize("kind", KINDS)
def test_the_arithmetic_is_that_of_the_class(kind: type[nn.Module]) -> None:
    wanted = results(filled(kind), states())
    found = results(fused(filled(kind)), states())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_it_is_nearer_to_the_exact_result(kind: type[nn.Module]) -> None:
    exact = results(filled(kind).bfloat16().float(), states(torch.bfloat16).float())
    written_out = results(filled(kind).bfloat16(), states(torch.bfloat16))
    found = results(fused(filled(kind).bfloat16()), states(torch.bfloat16))
    for one, other, true in zip(found, written_out, exact, strict=True):
        assert one.dtype == torch.bfloat16
        off, allowed = (one.float() - true).abs().mean(), (other.float() - true).abs().mean()
        assert off <= allowed + 1e-6 * true.abs().mean()


def test_autocast_does_not_widen_it() -> None:
    norm = fused(filled(LlamaRMSNorm).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(states(torch.bfloat16)).dtype == torch.bfloat16
        assert norm.float()(states()).dtype == torch.float32


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_two_dtypes_are_as_in_the_class(dtypes: tuple[str, str]) -> None:
    of_input, of_weight = (getattr(torch, name) for name in dtypes)
    norm = filled(LlamaRMSNorm).to(of_weight)
    wanted = norm(states(of_input))
    found = fused(norm)(states(of_input))
    assert found.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def test_a_model_keeps_its_names_and_parameters() -> None:
    model = make_model()
    before = dict(model.named_parameters())
    norms = [name for name, part in model.named_modules() if type(part).__name__.endswith("Norm")]
    twin = copy.deepcopy(model)
    count = fuse_norms(twin)
    changed = [name for name, part in twin.named_modules() if isinstance(part, FusedRMSNorm)]
    assert count == len(changed) > 4
    assert any(name.startswith("language_model") for name in changed)
    assert set(changed) <= set(norms)
    assert list(dict(twin.named_parameters())) == list(before)
    tokens = torch.arange(6)[None] + 5
    with torch.no_grad():
        wanted = model.language_model(tokens).logits
        found = twin.language_model(tokens).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    held = {id(parameter) for parameter in model.parameters()}
    fuse_norms(model)
    assert {id(parameter) for parameter in model.parameters()} == held


def test_a_norm_of_another_meaning_is_left_alone() -> None:
    holder = nn.ModuleDict({"gemma": GemmaRMSNorm(WIDTH), "layer": nn.LayerNorm(WIDTH)})
    assert fuse_norms(holder) == 0


def test_the_log_tells_how_many_and_is_silent_of_none(caplog: pytest.LogCaptureFixture) -> None:
    args: Any = SimpleNamespace(
        model=SimpleNamespace(attn_implementation="auto", grad_checkpoint=False),
        train=SimpleNamespace(bf16=True, fp16=False, torch_compile=False),
    )
    gemma = nn.ModuleDict({"norm": GemmaRMSNorm(WIDTH)})
    llama = nn.ModuleDict({"norm": LlamaRMSNorm(WIDTH), "other": LlamaRMSNorm(WIDTH)})
    with caplog.at_level(logging.INFO):
        prepare_blocks(args, gemma, torch.device("cuda"))
        assert caplog.messages == []
        prepare_blocks(args, llama, torch.device("cuda"))
    assert caplog.messages == ["2 norms are one kernel each"]


@pytest.mark.parametrize(
    ("requested", "device", "half_precision", "wanted"),
    [
        ("auto", "cuda", True, True),
        ("sdpa", "cuda", True, True),
        ("eager", "cuda", True, False),
        ("auto", "cuda", False, False),
        ("auto", "cpu", True, False),
    ],
)
def test_only_in_half_precision_on_a_gpu(
    requested: Any, device: str, half_precision: bool, wanted: bool
) -> None:
    chosen = wants_fused_norms(requested, torch.device(device), half_precision=half_precision)
    assert chosen is wanted
