"""FLOPs counted from shapes against those that torch counts while a tiny model trains.

What torch counts otherwise, each time worked out here: attention kernels for all pairs of a
sequence, not the causal half; not ``addmm_``, by which the gradient of the output layer's weight
is added up; in recomputation not the last product of a block, behind which nothing is kept.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from internvl_chat import InternVLChatModel
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.train.attention import SDPA_VARLEN, register_attention
from internvl_chat.train.finetune import recompute_activations
from tests.support.models import CONTEXT_ID, LLM, make_batch, make_config, make_model

DOWN = 2 * LLM["hidden_size"] * LLM["intermediate_size"] * LLM["num_hidden_layers"]
"""Forward FLOPs of a token in the last products of all blocks of the LLM."""
HEAD = 2 * LLM["hidden_size"] * LLM["vocab_size"]
PARTS = ("vision_model", "mlp1", "language_model")


def build(
    *trains: str, llm: dict[str, Any] | None = None, attention: str = "eager", **config: Any
) -> InternVLChatModel:
    """A model of which only parts, and all of its adapters, train."""
    model = make_model(make_config(llm=llm, **config))
    if llm:
        model.language_model.tie_weights()
    model.set_attn_implementation({"": "eager", "vision_config": "eager", "llm_config": attention})
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(trains or ("-",)))
    return model.train()


def measured(model: InternVLChatModel, batch: dict[str, Any]) -> int:
    torch.manual_seed(0)  # of the adapters' dropout
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch, return_logits=False).loss.backward()
    return counter.get_total_flops()


def counted(
    model: InternVLChatModel, lengths: list[int], tiles: int, labels: Tensor, *, again: bool = False
) -> float:
    """Ours, with the pairs that torch counts and without the ``addmm_`` that it does not."""
    flops = ModelFlops.of_model(model)
    supervised = int((labels[:, 1:] != -100).sum())
    total = flops.of_batch(lengths, tiles, supervised)
    pairs = sum(length * length for length in lengths)
    total += (pairs - sum(n * (n + 1) // 2 for n in lengths)) * flops.per_pair.total
    if again:
        total += sum(lengths) * flops.per_token.recomputed + pairs * flops.per_pair.recomputed
        total += tiles * flops.per_tile.recomputed
    head_trains = model.get_output_embeddings().weight.requires_grad
    return total - (supervised * HEAD if head_trains else 0)


CASES: dict[str, dict[str, Any]] = {
    "everything": {"trains": PARTS},
    "frozen vision tower": {"trains": PARTS[1:]},
    "projector alone": {"trains": ("mlp1",)},
    "LLM alone": {"trains": ("language_model",)},
    "head alone": {"trains": ("language_model.lm_head",)},
    "last norm alone": {"trains": ("language_model.model.norm",)},
    "output of the first attention": {
        "trains": ("language_model.model.layers.0.self_attn.o_proj",)
    },
    "last vision block": {"trains": ("vision_model.encoder.layers.2",)},
    "last vision block and LLM": {"trains": ("vision_model.encoder.layers.2", "language_model")},
    "LoRA of the LLM": {"use_llm_lora": 4},
    "LoRA of both": {"use_llm_lora": 4, "use_backbone_lora": 4},
    "LoRA of the LLM, projector": {"trains": ("mlp1",), "use_llm_lora": 4},
    "LoRA of the vision tower": {"use_backbone_lora": 4},
    "tied embeddings": {"trains": PARTS, "llm": {"tie_word_embeddings": True}},
    "without the last vision block": {"trains": PARTS, "select_layer": -2},
    "bias": {"trains": PARTS, "llm": {"attention_bias": True}},
    "heads of another width": {"trains": PARTS, "llm": {"head_dim": 10}},
}


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_of_a_real_step(case: str) -> None:
    settings = dict(CASES[case])
    model = build(*settings.pop("trains", ()), **settings)
    batch = make_batch(model.num_image_token)
    assert measured(model, batch) == counted(model, [18, 18], 2, batch["labels"])


def test_flops_of_a_packed_row() -> None:
    register_attention()
    model = build(*PARTS, attention=SDPA_VARLEN)
    lengths = [20, 7, 3]
    input_ids = torch.randint(0, CONTEXT_ID, (1, 30))
    input_ids[:, 1 : 1 + model.num_image_token] = CONTEXT_ID
    labels = input_ids.clone()
    labels[:, :20] = -100
    batch = {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "pixel_values": torch.randn(1, 3, 16, 16),
        "segment_lengths": tuple(lengths),
    }
    assert measured(model, batch) == counted(model, lengths, 1, labels)


@pytest.mark.parametrize(
    ("case", "last_product"),
    [
        ("everything", DOWN),
        ("projector alone", DOWN),
        ("last vision block", DOWN),  # none of the frozen blocks before it is computed again
        ("LoRA of the LLM", 2 * 4 * LLM["hidden_size"] * LLM["num_hidden_layers"]),  # B of rank 4
        ("head alone", 0),  # nothing is
    ],
)
def test_flops_with_recomputation(case: str, last_product: int) -> None:
    settings = dict(CASES[case])
    model = build(*settings.pop("trains", ()), **settings)
    batch = make_batch(model.num_image_token)
    measured(model, batch)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    recompute_activations(model)
    expected = counted(model, [18, 18], 2, batch["labels"], again=True) - 36 * last_product
    assert measured(model, batch) == expected
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_experts_count_by_those_that_a_token_is_sent_to() -> None:
    config = {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "pad_token_id": 0,
    }
    flops = ModelFlops.of_model(build(*PARTS, llm=config))
    # q and o 24 x 24, k and v 24 x 12, router 4 x 24, two experts of three 24 x 40; two blocks
    weights = 2 * (2 * 576 + 2 * 288 + 96 + 2 * 3 * 960)
    assert flops.per_token.forward == 2 * weights


def test_a_module_saved_whole_counts_once() -> None:
    """PEFT keeps the former head beside the one that trains."""
    from peft.utils import ModulesToSaveWrapper

    model = build()
    llm = model.language_model
    llm.set_output_embeddings(ModulesToSaveWrapper(llm.lm_head, "default"))
    llm.lm_head.modules_to_save.requires_grad_(True)
    assert ModelFlops.of_model(model).per_target.forward == HEAD
    assert ModelFlops.of_model(model).per_target.backward == HEAD
