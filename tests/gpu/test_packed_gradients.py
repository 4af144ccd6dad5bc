"""Packed rows train like the same samples one by one, with the kernels that a GPU run chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._dynamo.utils
from torch import Tensor

from internvl_chat.chat import load_model
from internvl_chat.data.collate import Collator
from internvl_chat.data.dataset import Example
from internvl_chat.model.constants import IGNORE_INDEX, IMG_CONTEXT_TOKEN
from internvl_chat.train.attention import choose_attention, register_attention
from internvl_chat.train.compilation import transformer_blocks
from internvl_chat.train.fused_norms import fuse_norms
from internvl_chat.train.inputs import forward_inputs, segment_lengths
from tests.support.training import ROOT

pytestmark = pytest.mark.gpu

TINY = ROOT / "pretrained/internvl-chat-tiny"
TEXT_LENGTHS = (40, 1, 130, 7, 64)
"""Of samples of which every other one has an image before its text."""


def samples(model: Any, tokenizer: Any) -> list[Example]:
    """Random tokens, the second half of each sample supervised; grey noise as images."""
    generator = torch.Generator().manual_seed(0)
    image_token = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    side = model.config.force_image_size
    found = []
    for number, length in enumerate(TEXT_LENGTHS):
        ids = torch.randint(300, 900, (length,), generator=generator)
        pixels = None
        if number % 2 == 0:
            ids = torch.cat([torch.full((model.num_image_token,), image_token), ids])
            pixels = torch.randint(0, 256, (1, 3, side, side), generator=generator).to(torch.uint8)
        labels = ids.clone()
        labels[: len(ids) - (length + 1) // 2] = IGNORE_INDEX
        found.append(
            Example(
                input_ids=ids,
                labels=labels,
                pixel_values=pixels,
                num_tiles=() if pixels is None else (1,),
                dataset_id=0,
                sample_index=number,
                where=f"sample {number}",
                truncated=False,
            )
        )
    return found


def trainable(dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """The shipped tiny model, as training has it, and its tokenizer."""
    model, tokenizer = load_model(str(TINY), dtype=dtype, device=device)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    return model.train(), tokenizer


def gradients(
    model: Any, batches: Sequence[dict[str, Any]], kernel: str, device: torch.device
) -> dict[str, Tensor]:
    """Of all weights by name, fp32, for the loss over all batches together."""
    model.zero_grad(set_to_none=True)
    model.language_model.set_attn_implementation(kernel)
    weights = sum(float(batch["loss_weight"][:, 1:].sum()) for batch in batches)
    for batch in batches:
        batch = {**batch, **segment_lengths(batch)}
        placed = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        taken = forward_inputs(
            placed, attention=kernel, normalize_type="imagenet", pixel_dtype=model.dtype
        )
        loss = model(
            **taken,
            loss_weight=placed["loss_weight"],
            loss_denominator=weights,
            return_logits=False,
        ).loss
        loss.backward()
    return {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of the wanted ones."""
    assert found.keys() == wanted.keys()
    difference = sum(float((found[n] - wanted[n]).square().sum()) for n in wanted)
    return (difference / sum(float(g.square().sum()) for g in wanted.values())) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_packed_equals_one_by_one(device: torch.device, dtype: torch.dtype) -> None:
    register_attention()
    half = dtype == torch.bfloat16
    model, tokenizer = trainable(dtype, device)
    examples = samples(model, tokenizer)
    collate = {p: Collator(pad_token_id=tokenizer.pad_token_id, packed=p) for p in (True, False)}
    kernels = {
        packed: choose_attention("auto", packed=packed, device=device, half_precision=half).llm
        for packed in (True, False)
    }
    alone = [collate[False]([[example]]) for example in examples]
    packed = gradients(model, [collate[True]([examples])], kernels[True], device)
    single = gradients(model, alone, kernels[False], device)
    if not half:
        off = distance(packed, single)
        assert off < 1e-4  # fp32, other orders of summation; TF32 is off
        return
    exact = gradients(trainable(torch.float32, device)[0], alone, "eager", device)
    # Each is a rounding away from the exact ones; packing must not be further than no packing.
    off, allowed = distance(packed, exact), 1.5 * distance(single, exact) + 1e-3
    assert off <= allowed


def test_fused_norms_and_compiled_blocks(device: torch.device) -> None:
    """Both are as near to fp32 as the model as it is, and other borders compile nothing anew."""
    register_attention()
    model, tokenizer = trainable(torch.bfloat16, device)
    examples = samples(model, tokenizer)
    collate = Collator(pad_token_id=tokenizer.pad_token_id, packed=True)
    chosen = choose_attention("auto", packed=True, device=device, half_precision=True)
    rows = [collate([part]) for part in (examples, examples[:4], examples[2:])]
    exact = gradients(trainable(torch.float32, device)[0], rows, "eager", device)
    allowed = 1.5 * distance(gradients(model, rows, chosen.llm, device), exact) + 1e-3
    assert fuse_norms(model) > 4
    assert distance(gradients(model, rows, chosen.llm, device), exact) <= allowed
    torch._dynamo.reset()
    for block in transformer_blocks(model):
        block.compile(dynamic=True, backend="aot_eager")
    gradients(model, rows[:1], chosen.llm, device)
    counted = torch._dynamo.utils.counters["stats"]
    graphs = counted["unique_graphs"]
    assert distance(gradients(model, rows, chosen.llm, device), exact) <= allowed
    if chosen.llm == "torch_varlen":  # by segments every row is another program
        assert counted["unique_graphs"] == graphs > 0
