"""Loading parts, from nothing but a state dict, and what must not be made up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from internvl_chat import InternVisionModel, InternVLChatConfig, InternVLChatModel
from internvl_chat.train.trainer_arguments import TrainArguments
from tests.support.models import make_config, make_model


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# ---------------------------------------------------------------- the tower of a chat checkpoint


def in_one_file(model: InternVLChatModel, folder: Path) -> None:
    model.save_pretrained(folder)


def in_shards(model: InternVLChatModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def in_a_bin_file(model: InternVLChatModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("write", [in_one_file, in_shards, in_a_bin_file])
def test_vision_tower_of_a_chat_checkpoint(
    write: Callable[[InternVLChatModel, Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its weights are under ``vision_model.`` there; transformers alone would make them up."""
    model = make_model()
    write(model, tmp_path)
    tower = InternVisionModel.from_pretrained(tmp_path)
    assert_equal(tower.state_dict(), model.vision_model.state_dict())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    _, report = InternVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (report["missing_keys"], report["unexpected_keys"]) == (set(), set())
    tower.save_pretrained(tmp_path / "alone")
    alone = AutoModel.from_pretrained(tmp_path / "alone")
    assert_equal(alone.state_dict(), tower.state_dict())


def test_vision_tower_of_what_has_none_is_refused(tmp_path: Path) -> None:
    make_model().language_model.save_pretrained(tmp_path)
    settings = {"config": make_config().vision_config}
    with pytest.raises(ValueError, match=r"weights of the vision tower are missing: embeddings\.c"):
        InternVisionModel.from_pretrained(tmp_path, **settings)
    _, report = InternVisionModel.from_pretrained(tmp_path, output_loading_info=True, **settings)
    assert "embeddings.class_embedding" in report["missing_keys"]


def test_vision_tower_with_lora_inside_is_refused(tmp_path: Path) -> None:
    make_model(make_config(use_backbone_lora=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: .*LoRA layers have to be merged first"):
        InternVisionModel.from_pretrained(tmp_path)


def test_vision_tower_of_an_adapter_has_the_adapters_layers(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_model().save_pretrained(base)
    settings = LoraConfig(target_modules=["qkv", "q_proj"], init_lora_weights=False)
    wrapped: Any = get_peft_model(InternVLChatModel.from_pretrained(base), settings)
    wrapped.save_pretrained(adapter)
    pixels = torch.randn(1, 3, 16, 16)
    expected = wrapped.base_model.model.vision_model(pixels).last_hidden_state
    found = InternVisionModel.from_pretrained(adapter)(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- without a checkpoint


@pytest.mark.parametrize("kind", [InternVLChatModel, InternVisionModel])
def test_from_a_state_dict_alone(kind: Any) -> None:
    model = make_model()
    source = model if kind is InternVLChatModel else model.vision_model
    expected = copy.deepcopy(source.state_dict())
    found = kind.from_pretrained(None, config=source.config, state_dict=expected)
    assert_equal(found.state_dict(), expected)
    fresh = kind.from_pretrained(None, config=source.config, state_dict={})
    assert not any(tensor.is_meta for tensor in fresh.state_dict().values())
    assert all(bool(tensor.isfinite().all()) for tensor in fresh.state_dict().values())


# ---------------------------------------------------------------- configuration, as others ask it


def test_the_language_models_configuration_under_transformers_name() -> None:
    config = make_config()
    assert config.text_config is config.llm_config
    assert config.hidden_size == 24
    assert config.to_dict()["text_config"] == config.to_dict()["llm_config"]
    assert "text_config" not in config.to_diff_dict()
    assert "hidden_size" not in config.to_diff_dict()
    again = InternVLChatConfig(**config.to_dict())
    assert again.to_diff_dict() == config.to_diff_dict()
    named = InternVLChatConfig(text_config=config.llm_config.to_dict())
    assert named.llm_config.hidden_size == 24
    assert copy.deepcopy(config).hidden_size == 24
    assert InternVLChatConfig(hidden_size=7).to_diff_dict()["hidden_size"] == 7  # kept as it is
    assert not hasattr(config, "hidden_sizes")


def test_automatic_buckets_of_zero(tmp_path: Path) -> None:
    """transformers' Trainer sizes them by the width of the model."""
    model = make_model()
    auto = dict.fromkeys(("reduce_bucket_size", "stage3_prefetch_bucket_size"), "auto")
    settings = HfTrainerDeepSpeedConfig(
        {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": "auto",
                **auto,
            },
        }
    )
    settings.trainer_config_finalize(TrainArguments(output_dir=str(tmp_path)), model, 10)
    assert settings.config["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 24 * 24,
        "stage3_prefetch_bucket_size": int(0.9 * 24 * 24),
        "stage3_param_persistence_threshold": 10 * 24,
    }
