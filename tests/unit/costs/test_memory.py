"""What a run is said to hold against what runs do hold."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from internvl_chat.costs.activations import LargestMicroBatch, _Probe, count_activations
from internvl_chat.costs.holdings import ParameterSize, parameter_sizes
from internvl_chat.costs.memory import (
    GIB,
    LOSS_CHUNK_BYTES,
    MemorySetting,
    estimate_memory,
    holdings_of,
)
from internvl_chat.errors import CheckpointError
from internvl_chat.model import vocabulary_loss
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.presets import load_preset
from internvl_chat.train.attention import register_attention
from internvl_chat.train.fused_norms import FusedRMSNorm, fuse_norms
from internvl_chat.train.zero import read_zero_file
from tests.support.meta_models import LORA, meta_model

SETTING = MemorySetting(
    deepspeed=None,
    world_size=1,
    compute_dtype=torch.bfloat16,
    recompute=True,
    writes_scores=False,
    batch=LargestMicroBatch(rows=4, row_tokens=1500, num_tiles=4, num_supervised=4000),
    has_norm_kernel=True,
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
            has_norm_kernel=False,
        ).kept
        for recompute in (False, True)
    }
    model = meta_model("tiny", device="cpu", **given)
    assert counted[False] == pytest.approx(_saved(model, batch, kernel, False), rel=0.15)
    assert counted[True] == pytest.approx(_saved(model, batch, kernel, True), rel=0.15)


def test_another_language_model() -> None:
    """Nothing about Llama is taken for granted: Gemma 2 has more norms, and caps its scores."""
    given = {"vocab_size": 960, "head_dim": 32, "num_key_value_heads": 4, "num_hidden_layers": 2}
    given |= {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
    llm = CONFIG_MAPPING["gemma2"](**given, eos_token_id=1, bos_token_id=1)
    vision = load_preset("tiny-vit").to_dict()
    config = InternVLChatConfig(vision_config=vision, llm_config=llm.to_dict())
    batch = LargestMicroBatch(rows=2, row_tokens=100, num_tiles=2, num_supervised=8)
    found = count_activations(
        meta_model(config),
        batch,
        recompute=False,
        writes_scores=True,
        dtype=torch.float32,
        autocasts=False,
        has_norm_kernel=False,
    )
    real = _saved(meta_model(config, device="cpu"), batch, "eager", False)
    assert found.kept == pytest.approx(real, rel=0.15)


WIDTH, HALF, SINGLE = 64, torch.bfloat16, torch.float32
INPUT, FACTORS = 2 * 100 * WIDTH, 4 * 2 * 100
"""Elements that go into a norm, and bytes of the fp32 factor of each row."""


@pytest.mark.parametrize(
    ("states", "weight", "autocasts", "saved"),
    [
        (HALF, HALF, False, 2 * INPUT),
        (SINGLE, SINGLE, True, 4 * INPUT),
        (HALF, HALF, True, 2 * INPUT),
        (HALF, SINGLE, True, (4 + 4) * INPUT),  # the input as autocast makes it, and the normed one
        (SINGLE, HALF, True, (4 + 4) * INPUT),
    ],
)
def test_what_a_gpus_norm_saves(
    states: torch.dtype, weight: torch.dtype, autocasts: bool, saved: int
) -> None:
    norm = FusedRMSNorm(nn.Parameter(torch.empty(WIDTH, dtype=weight)), 1e-6)
    probe = _Probe(dtype=HALF, autocasts=autocasts, has_norm_kernel=True)

    def inputs(dtype: torch.dtype) -> dict[str, Any]:
        hidden = torch.empty(2, 100, WIDTH, dtype=states, requires_grad=True)
        return {"hidden_states": hidden * 1}

    assert probe.run(norm, inputs).total == saved + FACTORS


@pytest.mark.parametrize("recompute", [False, True])
def test_fused_norms_are_counted_as_such(recompute: bool) -> None:
    model = meta_model("tiny", dtype=HALF, **LORA)
    batch = LargestMicroBatch(rows=2, row_tokens=200, num_tiles=2, num_supervised=8)

    def counted() -> int:
        return count_activations(
            model,
            batch,
            recompute=recompute,
            writes_scores=False,
            dtype=HALF,
            autocasts=False,
            has_norm_kernel=True,
        ).kept

    written_out = counted()
    assert fuse_norms(model) > 0
    config = model.config.get_text_config()
    norms = 1 if recompute else 2 * config.num_hidden_layers + 1
    rows = batch.rows * batch.row_tokens
    # Of each element the input's 2 bytes in place of the 4 of a copy in fp32.
    assert written_out - counted() == (4 - 2) * rows * config.hidden_size * norms


class _AsksForValues(nn.Module):
    """Takes as many rows as there are numbers above zero."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[rows.nonzero()[:, 0]]


def test_a_model_that_wants_values_is_refused_with_a_sentence() -> None:
    probe = _Probe(dtype=torch.float32, autocasts=False, has_norm_kernel=False)
    with pytest.raises(CheckpointError, match="_AsksForValues cannot be run without values"):
        probe.run(_AsksForValues(), lambda dtype: {"rows": torch.empty(2, 2, dtype=dtype)})


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


@pytest.mark.parametrize("given", [{}, LORA])
def test_a_run_without_deepspeed_holds_what_is_said(given: dict[str, Any]) -> None:
    """A process with one step behind it: weights, gradients and AdamW's state."""
    model = meta_model("tiny", device="cpu", **given)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    kinds = {
        "weights": list(model.parameters()),
        "gradients": [parameter.grad for parameter in trained],
        "optimizer": moments,
    }
    setting = replace(SETTING, compute_dtype=torch.float32)
    held = holdings_of(parameter_sizes(meta_model("tiny", **given)), setting)
    for kind, tensors in kinds.items():
        assert getattr(held, kind) == pytest.approx(sum(t.nbytes for t in tensors), rel=0.01)


@pytest.mark.parametrize(
    ("name", "weights", "gradients", "optimizer", "buffers"),
    [
        # 1,000 numbers in a matrix and 10 beside it, on 4 ranks; 2 bytes, masters and moments 12.
        # A bucket of at most 1,010 numbers; two with overlap.
        ("zero1", 2 * (1000 + 16), 2 * 1010, 12 * (250 + 4), 2 * 1010),
        # A rank keeps the gradient of a matrix whole of which it has a part.
        ("zero2", 2 * (1000 + 16), 2 * (1000 + 10), 12 * (250 + 4), 2 * 2 * 1010),
        # Each is cut for itself, and below a threshold whole beside it.
        ("zero3", 2 * (250 + 3), 2 * (250 + 3), 12 * (250 + 3), 2 * 1010 + 2 * 1010),
        ("zero2_offload", 2 * (1000 + 16), 0, 0, 2 * 2 * 1010 + 2 * 1000),
    ],
)
def test_stages_worked_out_by_hand(
    name: str, weights: int, gradients: int, optimizer: int, buffers: int
) -> None:
    sizes = [ParameterSize(1000, True, 0, 4), ParameterSize(10, True, 1, 4)]
    setting = replace(SETTING, deepspeed=read_zero_file(name), world_size=4)
    held = holdings_of(sizes, setting)
    found = (held.weights, held.gradients, held.optimizer, held.buffers)
    assert found == (weights, gradients, optimizer, buffers)


def test_what_does_not_train_has_no_gradient_and_no_state() -> None:
    sizes = [ParameterSize(1000, False, 0, 2), ParameterSize(8, True, 0, 4)]
    plain = holdings_of(sizes, replace(SETTING, world_size=2))
    assert (plain.weights, plain.gradients, plain.optimizer) == (2032, 32, 64)
    assert plain.buffers == 32  # DDP's buckets
    assert holdings_of(sizes, SETTING).buffers == 0


def test_recomputation_and_fewer_rows_take_less() -> None:
    model = meta_model("tiny", dtype=torch.bfloat16)
    kept = estimate_memory(model, replace(SETTING, recompute=False)).activations
    again = estimate_memory(model, SETTING).activations
    half = replace(SETTING.batch, rows=2, num_tiles=2)
    assert again < kept / 2
    assert estimate_memory(model, replace(SETTING, batch=half)).activations < 0.6 * again


def test_the_losss_scratch_is_the_models() -> None:
    assert LOSS_CHUNK_BYTES == vocabulary_loss._CHUNK_BYTES_ACCELERATOR


def test_parts_add_up() -> None:
    found = estimate_memory(meta_model("tiny", dtype=torch.bfloat16), SETTING)
    assert sum(found.parts().values()) == pytest.approx(found.total)
    assert found.weights * GIB == sum(p.numel() * 2 for p in meta_model("tiny").parameters())
