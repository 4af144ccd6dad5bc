"""Checkpoints as they are written: complete, loadable by others, adapters small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.checkpoint.names import is_lora
from internvl_chat.checkpoint.save import plan_shards, save_checkpoint_files
from internvl_chat.checkpoint.skeleton import skeleton_of
from internvl_chat.checkpoint.sources import find_chat_config
from internvl_chat.checkpoint.tokenizer import (
    add_special_tokens,
    find_tokenizer,
    load_tokenizer,
)
from internvl_chat.config import BuildConfig
from internvl_chat.errors import CheckpointError
from internvl_chat.model import InternVLChatConfig, InternVLChatModel
from internvl_chat.model.presets import load_preset
from tests.support.checkpoints import (
    config_for,
    save_parts,
    stitch_config,
)
from tests.support.models import code_files

IMAGE = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)


@pytest.fixture
def stitched(tmp_path: Path) -> tuple[Path, InternVLChatModel]:
    """A chat checkpoint written by the code under test, and the model it was written from."""
    save_parts(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path / "llm"))
    added = add_special_tokens(tokenizer)
    model = build_model(stitch_config(tmp_path), tokenizer, num_new_tokens=added)
    directory = tmp_path / "chat"
    directory.mkdir()
    save_checkpoint_files(model, tokenizer, directory)
    return directory, model


def logits(model: Any) -> torch.Tensor:
    token = 261  # <IMG_CONTEXT> of the tiny tokenizer
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.img_context_token_id = token
    ids = torch.tensor([[3, token, token, token, token, 9, 11]])
    with torch.no_grad():
        return model.eval()(pixel_values=IMAGE, input_ids=ids, image_flags=torch.ones(1)).logits


def lora_config(path: Path, **changes: Any) -> BuildConfig:
    frozen = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}
    return config_for(path, **{**frozen, "use_llm_lora": 4, **changes})


def trained(build: BuildConfig, path: Path) -> InternVLChatModel:
    """A model whose trained weights have moved."""
    model = build_model(build, load_tokenizer(str(path)))
    apply_freezing_and_lora(model, build.trainable)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_files_and_what_others_read_in_them(stitched: tuple[Path, InternVLChatModel]) -> None:
    directory, model = stitched
    readable = directory.stat().st_mode & 0o444
    assert (directory / "model.safetensors").stat().st_mode & 0o444 == readable
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *code_files(),
    }
    config = json.loads((directory / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    assert config["architectures"] == ["InternVLChatModel"]
    assert config["auto_map"]["AutoModel"] == "modeling_internvl_chat.InternVLChatModel"
    loaded = AutoModel.from_pretrained(directory)
    assert logits(loaded).equal(logits(model))
    processor = CLIPImageProcessor.from_pretrained(directory)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert processor.size["shortest_edge"] == processor.crop_size["width"] == 28
    tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=False)
    assert tokenizer.convert_tokens_to_ids("</box>") == 267
    declared = json.loads((directory / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert declared == "PreTrainedTokenizerFast"  # transformers 4 knows it


def test_an_adapter_loads_by_auto_model_by_peft_and_back_into_training(
    stitched: tuple[Path, InternVLChatModel], tmp_path: Path
) -> None:
    from peft import AutoPeftModel, PeftModel

    base, _ = stitched
    build = lora_config(base, use_backbone_lora=2, freeze_mlp=False)
    model = trained(build, base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_checkpoint_files(model, load_tokenizer(str(base)), adapter)
    assert not list(adapter.glob("model*.safetensors"))
    written = json.loads((adapter / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(base)
    assert (written["r"], written["lora_alpha"], written["modules_to_save"]) == (4, 8, ["mlp1"])
    assert written["rank_pattern"] == {r"vision_model\..*": 2}
    want = logits(model)
    assert not want.allclose(logits(AutoModel.from_pretrained(base)))
    assert logits(AutoModel.from_pretrained(adapter)).equal(want)
    assert logits(PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter)).equal(want)
    assert logits(AutoPeftModel.from_pretrained(adapter)).equal(want)

    continued = build_model(lora_config(adapter, use_backbone_lora=2), load_tokenizer(str(adapter)))
    assert continued.state_dict().keys() == model.state_dict().keys()  # not wrapped twice
    assert all(v.equal(model.state_dict()[k]) for k, v in continued.state_dict().items())
    # The projector is frozen now, yet still differs from the base: it is saved again.
    again = tmp_path / "again"
    again.mkdir()
    apply_freezing_and_lora(continued, lora_config(adapter, use_backbone_lora=2).trainable)
    save_checkpoint_files(continued, load_tokenizer(str(adapter)), again)
    first, second = (load_file(d / "adapter_model.safetensors") for d in (adapter, again))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_an_adapter_that_peft_alone_wrote_trains_on(
    stitched: tuple[Path, InternVLChatModel], tmp_path: Path
) -> None:
    base, _ = stitched
    model = trained(lora_config(base), base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_checkpoint_files(model, load_tokenizer(str(base)), adapter)
    for path in adapter.iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()
    assert find_chat_config(adapter) == base / "config.json"
    assert find_tokenizer(adapter) == base
    continued = build_model(lora_config(adapter), load_tokenizer(str(adapter)))
    assert logits(continued).equal(logits(model))
    assert continued.adapter_base == str(base)


def test_an_adapter_on_other_weights_is_saved_with_them(
    stitched: tuple[Path, InternVLChatModel], tmp_path: Path
) -> None:
    base, _ = stitched
    tokenizer = load_tokenizer(str(base))
    tokenizer.add_tokens([f"<new{number}>" for number in range(40)])
    build = lora_config(base)
    model = build_model(build, tokenizer, num_new_tokens=40)
    apply_freezing_and_lora(model, build.trainable)
    directory = tmp_path / "whole"
    directory.mkdir()
    save_checkpoint_files(model, tokenizer, directory)
    names = load_file(directory / "model.safetensors").keys()
    layer = "language_model.base_model.model.model.layers.0.self_attn.q_proj."
    assert {f"{layer}base_layer.weight", f"{layer}lora_A.default.weight"} <= names
    assert logits(AutoModel.from_pretrained(directory)).equal(logits(model))
    continued = build_model(lora_config(directory), tokenizer)
    assert all(v.equal(model.state_dict()[k]) for k, v in continued.state_dict().items())


def test_an_adapter_of_another_rank_or_left_unfrozen(
    stitched: tuple[Path, InternVLChatModel], tmp_path: Path
) -> None:
    base, _ = stitched
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_checkpoint_files(trained(lora_config(base), base), load_tokenizer(str(base)), adapter)
    tokenizer = load_tokenizer(str(adapter))
    with pytest.raises(Exception, match="carries an adapter of rank 4, not 8"):
        build_model(lora_config(adapter, use_llm_lora=8), tokenizer)
    with pytest.raises(Exception, match="--use_llm_lora: an adapter is trained on layers"):
        build_model(config_for(adapter), tokenizer)
    (base / "config.json").rename(base / "gone.json")
    with pytest.raises(CheckpointError, match="its base model is not at"):
        build_model(lora_config(adapter), tokenizer)


def set_bias(model: InternVLChatModel, value: torch.Tensor | None) -> None:
    model.mlp1[0].bias = None if value is None else torch.nn.Parameter(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: set_bias(model, None), "1 missing: mlp1.0.bias"),
        (lambda model: model.register_buffer("x", torch.zeros(1)), "1 surplus: x"),
        (lambda model: set_bias(model, torch.zeros(0)), "1 of zero size: mlp1.0"),
        (lambda model: set_bias(model, torch.zeros(1)), "mlp1.0.bias is 1, wanted"),
    ],
)
def test_a_save_with_a_wrong_tensor_fails_and_writes_nothing(
    stitched: tuple[Path, InternVLChatModel], tmp_path: Path, change: Any, message: str
) -> None:
    _, model = stitched
    change(model)
    directory = tmp_path / "bad"
    directory.mkdir()
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint_files(model, None, directory)  # type: ignore[arg-type]
    assert not list(directory.iterdir())


def test_a_large_model_is_cut_into_files(
    stitched: tuple[Path, InternVLChatModel], tmp_path: Path
) -> None:
    base, model = stitched
    directory = tmp_path / "cut"
    directory.mkdir()
    save_checkpoint_files(
        model, load_tokenizer(str(base)), directory, dtype=torch.bfloat16, max_shard_bytes=15_000
    )
    shards = sorted(path.name for path in directory.glob("model-*"))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all((directory / shard).stat().st_size < 18_000 for shard in shards)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in model.parameters())
    loaded = AutoModel.from_pretrained(directory)
    assert loaded.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].equal(value.bfloat16()), name


def test_shards_are_filled_in_order() -> None:
    assert plan_shards({"a": 3, "b": 3}, 6) == {"model.safetensors": ["a", "b"]}
    assert plan_shards({"a": 3, "b": 9, "c": 3, "d": 3}, 6) == {
        "model-00001-of-00003.safetensors": ["a"],
        "model-00002-of-00003.safetensors": ["b"],
        "model-00003-of-00003.safetensors": ["c", "d"],
    }


def test_an_adapter_of_the_40_b_model_is_a_fraction_of_a_percent() -> None:
    """Rank 16, as the LoRA recipe has it: counted on the model's shapes, no weight made."""
    config = load_preset("InternVL-Chat-V1-2")
    assert isinstance(config, InternVLChatConfig)
    base = sum(torch.Size(shape).numel() for shape in skeleton_of(config).shapes.values())
    config.use_llm_lora = 16
    shapes = skeleton_of(config).shapes
    adapter = sum(torch.Size(shape).numel() for name, shape in shapes.items() if is_lora(name))
    assert base == pytest.approx(40.07e9, rel=1e-3)
    assert 0.001 < adapter / base < 0.004


@pytest.mark.parametrize("adapter_only", [False, True])
def test_settings_of_generate_go_along(
    stitched: tuple[Path, InternVLChatModel], tmp_path: Path, adapter_only: bool
) -> None:
    """Those of the checkpoint that the training began from."""
    base = Path(shutil.copytree(stitched[0], tmp_path / "base"))
    settings = '{"temperature": 0.5, "do_sample": false}'  # which transformers would not write
    (base / "generation_config.json").write_text(settings)
    directory = tmp_path / "trained"
    directory.mkdir()
    save_checkpoint_files(
        trained(lora_config(base), base),
        load_tokenizer(str(base)),
        directory,
        begun_from=str(base),
        adapter_only=adapter_only,
    )
    assert (directory / "generation_config.json").read_text() == settings
