"""What a run is said to hold against what runs do hold."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from internvl_chat.costs.activations import LargestMicroBatch, count_activations
from internvl_chat.costs.memory import GIB, MemorySetting, estimate_memory
from internvl_chat.model.presets import load_preset
from internvl_chat.train.attention import register_attention
from internvl_chat.train.zero import read_zero_file
from tests.support.meta_models import LORA, meta_model

SETTING = MemorySetting(
    deepspeed=None,
    world_size=1,
    compute_dtype=torch.bfloat16,
    recompute=True,
    writes_scores=False,
    batch=LargestMicroBatch(rows=4, row_tokens=1500, num_tiles=4, num_supervised=4000),
)


def test_the_published_size_with_lora_on_one_gpu() -> None:
    """Measured on an H200 under ZeRO-3: a peak of 88.3 GiB, rows of about 1,500 tokens."""
    model = meta_model("InternVL-Chat-V1-2", dtype=torch.bfloat16, **LORA)
    setting = replace(SETTING, deepspeed=read_zero_file("zero3_34b"))
    assert estimate_memory(model, setting).total == pytest.approx(88.3, rel=0.05)


def test_a_middle_size_in_full_under_zero3_on_one_gpu() -> None:
    """Measured on an H200: 58.9 GiB, two packs of 4,096 tokens, 3.35 B parameters."""
    config = load_preset("InternVL-Chat-V1-2")
    config.vision_config.num_hidden_layers = 8
    config.llm_config.update(
        {
            "num_hidden_layers": 10,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        }
    )
    model = meta_model(config, dtype=torch.bfloat16)
    batch = LargestMicroBatch(rows=1, row_tokens=8192, num_tiles=12, num_supervised=4000)
    setting = replace(SETTING, deepspeed=read_zero_file("zero3"), batch=batch)
    assert estimate_memory(model, setting).total == pytest.approx(58.9, rel=0.05)


SHAPES = {
    "two short rows": (2, 48, 1),
    "long rows": (2, 200, 2),
    "many tiles": (1, 300, 6),
    "text only": (3, 100, 0),
}


@pytest.mark.parametrize(
    ("trains", "shape", "kernel"),
    [
        ("full", "long rows", "sdpa"),
        ("full", "text only", "packed"),
        ("lora", "two short rows", "eager"),
        ("lora", "many tiles", "packed"),
        ("projector", "many tiles", "sdpa"),
    ],
)
def test_what_is_saved_for_the_backward_pass(shape: str, kernel: str, trains: str) -> None:
    """Hooks on a real forward pass see what was counted without one."""
    given = {
        "full": {},
        "lora": LORA,
        "projector": {"freeze_llm": True, "freeze_backbone": True},
    }[trains]
    rows, tokens, tiles = SHAPES[shape]
    if kernel == "packed":
        rows, tokens = 1, rows * tokens
    batch = LargestMicroBatch(rows=rows, row_tokens=tokens, num_tiles=tiles, num_supervised=8)
    counted = {
        recompute: count_activations(
            meta_model("tiny", **given),
            batch,
            recompute=recompute,
            writes_scores=kernel == "eager",
            dtype=torch.float32,
            autocasts=False,
        ).kept
        for recompute in (False, True)
    }
    model = meta_model("tiny", device="cpu", **given)
    assert counted[False] == pytest.approx(_saved(model, batch, kernel, False), rel=0.15)
    assert counted[True] == pytest.approx(_saved(model, batch, kernel, True), rel=0.15)


def _saved(model: Any, batch: LargestMicroBatch, kernel: str, recompute: bool) -> int:
    """Bytes that autograd keeps of a forward pass, weights left out, each storage once."""
    register_attention()
    name = {"packed": "sdpa_varlen"}.get(kernel, kernel)
    vision = "sdpa" if kernel == "packed" else kernel
    model.set_attn_implementation({"": vision, "vision_config": vision, "llm_config": name})
    model.train()
    if recompute:
        model.gradient_checkpointing_enable()
    model.img_context_token_id = 7
    ids = torch.full((batch.rows, batch.row_tokens), 3)
    ids[:, : model.num_image_token * batch.num_tiles // batch.rows] = 7
    inputs: dict[str, Any] = {"use_cache": False}
    if kernel == "packed":
        half = batch.row_tokens // 2
        inputs["segment_lengths"] = (half, batch.row_tokens - half)
        inputs["position_ids"] = torch.arange(batch.row_tokens)[None]
    pixels = torch.zeros(batch.num_tiles, 3, 112, 112) if batch.num_tiles else None
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Saved:
        kept = _Saved(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        states = model.get_decoder()(inputs_embeds=model._embed(ids, pixels), **inputs)[0]
    assert states.requires_grad
    gc.collect()
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor for kept in alive}
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@dataclass(eq=False)
class _Saved:
    """A tensor for as long as the graph keeps it."""

    tensor: torch.Tensor


def test_parts_add_up() -> None:
    found = estimate_memory(meta_model("tiny", dtype=torch.bfloat16), SETTING)
    assert sum(found.parts().values()) == pytest.approx(found.total)
    assert found.weights * GIB == sum(p.numel() * 2 for p in meta_model("tiny").parameters())
