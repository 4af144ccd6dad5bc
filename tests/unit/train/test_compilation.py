"""Compiled blocks: which, under what names, with which numbers, and when they are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._functorch.config
import torch.distributed as dist
from torch import Tensor, nn

from internvl_chat.model import InternVLChatModel
from internvl_chat.train import compilation
from internvl_chat.train.arguments import DataArguments, ModelArguments
from internvl_chat.train.compilation import (
    REMATERIALISE,
    ROW_MULTIPLE,
    compile_blocks,
    compile_problems,
    not_the_whole_model,
    row_multiple,
    transformer_blocks,
)
from internvl_chat.train.finetune import main, recompute_activations
from internvl_chat.train.trainer_arguments import NOT_COMPILED, TrainArguments
from tests.support.training import (
    largest_difference,
    logged,
    train_arguments,
    weights,
    write_dataset,
    write_tiny_chat_model,
)

CPU = torch.device("cpu")
IMAGE_TOKEN = 5


@pytest.fixture
def model(tmp_path: Path) -> InternVLChatModel:
    loaded = InternVLChatModel.from_pretrained(write_tiny_chat_model(tmp_path / "model"))
    loaded.img_context_token_id = IMAGE_TOKEN
    return loaded.train()


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """The limit is the process's, and so is what torch does with a graph."""
    tracing: Any = torch._functorch.config
    kept = {name: getattr(tracing, name) for name in [REMATERIALISE] if hasattr(tracing, name)}
    usual = {"recompile_limit": 8, "optimize_ddp": True}
    with torch._dynamo.config.patch(usual), tracing.patch(kept):
        yield
    torch._dynamo.reset()


def arguments(tmp_path: Path, **given: Any) -> TrainArguments:
    return TrainArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, **given)


def batch(model: InternVLChatModel, length: int, tiles: int) -> dict[str, Tensor]:
    torch.manual_seed(length)
    ids = torch.randint(6, 60, (2, length))
    ids[0, : tiles * model.num_image_token] = IMAGE_TOKEN
    size = model.config.force_image_size
    return {
        "input_ids": ids,
        "labels": ids.clone(),
        "pixel_values": torch.rand(tiles, 3, size, size),
        "image_flags": torch.ones(tiles, dtype=torch.int64),
    }


def gradients(model: InternVLChatModel, length: int, tiles: int) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch(model, length, tiles), return_logits=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_blocks_of_both_towers_are_compiled_once_for_all_lengths(
    model: InternVLChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recompute_activations(model)
    shapes = [(40, 2), (55, 3), (48, 2), (61, 3)]
    expected = [gradients(model, *shape) for shape in shapes]
    names = list(model.state_dict())
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(str(len(inputs)))
        return graph.forward

    train = arguments(tmp_path, torch_compile=True)
    monkeypatch.setattr(train, "torch_compile_backend", backend)
    blocks = len(model.vision_model.encoder.layers) + len(model.language_model.model.layers)
    assert compile_blocks(model, train) == blocks
    found = [gradients(model, *shape) for shape in shapes]
    assert list(model.state_dict()) == names
    assert 2 <= len(graphs) <= 4  # a kind each, however many blocks and lengths
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, gradient in other.items():
            torch.testing.assert_close(one[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_block_larger_than_ddps_buckets_is_one_graph(tmp_path: Path, alone: None) -> None:
    llm = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 1}
    model = InternVLChatModel.from_pretrained(write_tiny_chat_model(tmp_path / "model", llm=llm))
    model.img_context_token_id = IMAGE_TOKEN
    parallel = nn.parallel.DistributedDataParallel(model.train(), bucket_cap_mb=1)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    train = arguments(tmp_path, torch_compile=True)
    train.torch_compile_backend = backend  # type: ignore[assignment]
    compile_blocks(model, train)
    parallel(**batch(model, 40, 2), return_logits=False).loss.backward()
    assert len(graphs) == 2  # of the vision tower, and of 4 MiB


def test_a_frozen_tower_is_recomputed_and_compiled(
    model: InternVLChatModel, tmp_path: Path
) -> None:
    """torch 2.12 and newer refused attention in such a block, which has no backward."""
    model.vision_model.requires_grad_(False)
    recompute_activations(model)
    compile_blocks(model, arguments(tmp_path, torch_compile_backend="aot_eager"))
    block = model.vision_model.encoder.layers[0]
    states = torch.ones(2, 5, model.config.vision_config.hidden_size)
    assert not block(states).requires_grad


def test_one_kind_of_block_under_an_adapter(model: InternVLChatModel) -> None:
    before = transformer_blocks(model)
    model.wrap_llm_lora(r=2)
    assert transformer_blocks(model) == before


def test_transformers_and_accelerate_are_not_asked_to_compile(tmp_path: Path) -> None:
    """They would take the whole model, rename its tensors and turn TF32 on."""
    before = torch.backends.cuda.matmul.fp32_precision
    train = arguments(tmp_path, torch_compile_mode="max-autotune-no-cudagraphs")
    told = {name: getattr(train, name) for name in NOT_COMPILED}
    assert told == {
        "torch_compile": True,
        "torch_compile_backend": "inductor",
        "torch_compile_mode": "max-autotune-no-cudagraphs",
    }
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ
    with not_the_whole_model(train):
        assert {name: getattr(train, name) for name in NOT_COMPILED} == NOT_COMPILED
    assert {name: getattr(train, name) for name in NOT_COMPILED} == told
    usual = {f.name: f.default for f in fields(TrainArguments) if f.name in NOT_COMPILED}
    assert usual == NOT_COMPILED


def test_padded_rows_are_rounded_up(tmp_path: Path) -> None:
    usual, compiled = arguments(tmp_path), arguments(tmp_path, torch_compile=True)
    assert row_multiple(DataArguments(), usual) == 1
    assert row_multiple(DataArguments(), compiled) == ROW_MULTIPLE
    assert row_multiple(DataArguments(pad_to_multiple_of=1), compiled) == 1
    assert row_multiple(DataArguments(pad_to_multiple_of=128), usual) == 128
    assert row_multiple(DataArguments(use_packed_ds=True), compiled) == 1


@pytest.mark.parametrize(
    ("model_given", "data_given", "train_given", "told"),
    [
        ({}, {}, {}, None),
        ({}, {"use_packed_ds": True}, {}, "anew for every row"),
        ({"load_in_4bit": True}, {}, {}, "weights of 4 bits are not compiled"),
        ({}, {}, {"torch_compile_mode": "reduce-overhead"}, "records kernels for one shape"),
        ({}, {}, {"torch_compile_mode": "fast"}, "want one of default"),
        ({}, {}, {"deepspeed": {"zero_optimization": {"stage": 3}}}, "Use ZeRO-1 or 2"),
        ({}, {}, {"deepspeed": {"zero_optimization": {"stage": 2}}}, None),
    ],
)
def test_what_cannot_be_compiled(
    model_given: Any, data_given: Any, train_given: dict[str, Any], told: str | None, tmp_path: Path
) -> None:
    train = arguments(tmp_path, torch_compile=True)
    train.__dict__.update(train_given)
    given = ModelArguments(**model_given), DataArguments(**data_given)
    problems = list(compile_problems(*given, train, CPU))
    assert len(problems) == (told is not None)
    assert told is None or told in problems[0]
    train.torch_compile = False
    assert list(compile_problems(*given, train, CPU)) == []


def test_a_machine_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    train = arguments(tmp_path, torch_compile=True)
    (problem,) = compile_problems(ModelArguments(), DataArguments(), train, CPU)
    assert "install g++" in problem


LORA = {"use_llm_lora": 4, "freeze_llm": True, "use_backbone_lora": 4, "freeze_backbone": True}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {**LORA, "lora_dropout": 0}])  # others are drawn
def test_a_compiled_run_is_the_same_and_goes_on(adapter: dict[str, Any], tmp_path: Path) -> None:
    """Interrupted after two steps and continued; with recomputation."""
    base = write_tiny_chat_model(tmp_path / "model")
    meta = write_dataset(tmp_path / "data", ("text", "image", "two", "rounds"))
    given = {"grad_checkpoint": True, **adapter}
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert main(train_arguments(base, meta, tmp_path / "plain", max_steps=4, **given)) == 0
    compiled = {"torch_compile": True, "save_strategy": "steps", "save_steps": 2, **given}
    for steps in (2, 4):
        out = tmp_path / "compiled"
        assert main(train_arguments(base, meta, out, max_steps=steps, **compiled)) == 0
    expected, found = logged(tmp_path / "plain"), logged(tmp_path / "compiled")
    assert found == pytest.approx(expected, rel=1e-6)
    gap = largest_difference(
        weights(tmp_path / "plain", file), weights(tmp_path / "compiled", file)
    )
    assert gap < 1e-5
