"""Adapters of PEFT: every reader takes them the same way, or refuses them with one reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from internvl_chat.chat import load_model
from internvl_chat.checkpoint.load import build_model, require_complete
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.surgery.merge import merge_lora
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError
from tests.support.checkpoints import config_for
from tests.support.lora_checkpoints import load_fp32, logits_for, save_base, save_lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "tied"
    return save_base(folder, llm={"tie_word_embeddings": True})


def save_adapter(base: Path, directory: Path, **settings: Any) -> Tensor:
    """What PEFT alone writes; returns the logits of the model with it."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **settings}
    wrapped = get_peft_model(load_fp32(base), LoraConfig(**settings), autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "delta" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    logits = logits_for(wrapped.base_model.model)
    wrapped.save_pretrained(directory)
    change(directory, base_model_name_or_path=str(base))
    return logits


def change(directory: Path, **values: object) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def train(directory: Path) -> None:
    build = config_for(directory, freeze_llm=True, freeze_backbone=True)
    build_model(build, load_tokenizer(str(directory)))


def readers(directory: Path, tmp_path: Path) -> dict[str, Callable[[], object]]:
    return {
        "chat": lambda: load_model(str(directory)),
        "merge": lambda: merge_lora(str(directory), str(tmp_path / "merged"), check="weights"),
        "train": lambda: train(directory),
    }


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_an_adapter_on_the_head(kind: str, base: Path, tied: Path, tmp_path: Path) -> None:
    """PEFT stores the weight under it as well."""
    below = base if kind == "untied" else tied
    wanted = save_adapter(below, tmp_path / "a", target_modules=["q_proj", "lm_head"])
    assert logits_for(load_model(str(tmp_path / "a"))[0]).equal(wanted)
    merge_lora(str(tmp_path / "a"), str(tmp_path / "merged"))
    found = logits_for(load_fp32(tmp_path / "merged"))
    assert (found - wanted).abs().max() < 2e-5


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["embed_tokens"]}, {"trainable_token_indices": [7, 21]}]
)
def test_an_adapter_on_the_embedding(settings: Any, tied: Path, tmp_path: Path) -> None:
    wanted = save_adapter(tied, tmp_path / "a", **settings)
    assert logits_for(load_model(str(tmp_path / "a"))[0]).equal(wanted)
    with pytest.raises(CheckpointError, match="adapter on an embedding, which is not merged here"):
        merge_lora(str(tmp_path / "a"), str(tmp_path / "merged"))


def test_layers_by_number(base: Path, tmp_path: Path) -> None:
    """Zero is a layer, not the absence of one."""
    settings = {"layers_to_transform": 0, "layers_pattern": "layers"}
    wanted = save_adapter(base, tmp_path / "a", **settings)
    assert logits_for(load_model(str(tmp_path / "a"))[0]).equal(wanted)
    merge_lora(str(tmp_path / "a"), str(tmp_path / "merged"))
    assert (logits_for(load_fp32(tmp_path / "merged")) - wanted).abs().max() < 2e-5


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter") / "a"
    save_adapter(base, directory)
    return directory


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', wanted 'LORA'"),
        ({"r": 0}, "r is 0, wanted a rank"),
        ({"r": "4"}, "r is '4', wanted a rank"),
        ({"lora_alpha": None}, "lora_alpha is None, wanted a number"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern is"),
        ({"target_modules": None}, "target_modules names no layer"),
        ({"modules_to_save": "mlp1"}, "modules_to_save is 'mlp1', wanted a list"),
        ({"init_lora_weights": "pissa"}, "on layers that were changed for it"),
        ({"alora_invocation_tokens": [3]}, "aLoRA"),
        ({"r": 2, "lora_alpha": 4}, "has a LoRA of rank 4"),
    ],
)
def test_settings_that_no_reader_takes(
    adapter: Path, tmp_path: Path, values: dict[str, object], told: str
) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    change(tmp_path / "a", **values)
    for use in readers(tmp_path / "a", tmp_path).values():
        with pytest.raises(CheckpointError, match=told):
            use()


def _empty(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {}


def _twice(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        key.replace(".weight", ".default.weight"): value * 2 for key, value in weights.items()
    }
    return weights | renamed


def _of_another_width(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.zeros(4, 20) if ".lora_A." in k else v for k, v in weights.items()}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_empty, "holds no weights"),
        (_twice, "twice, the second time as"),
        (_of_another_width, "lora_A is 4x20, wanted 4x16"),
    ],
)
def test_weights_that_no_reader_takes(
    adapter: Path,
    tmp_path: Path,
    make: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    told: str,
) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    save_file(make(load_file(adapter / WEIGHTS)), tmp_path / "a" / WEIGHTS)
    for use in readers(tmp_path / "a", tmp_path).values():
        with pytest.raises(CheckpointError, match=told):
            use()


def test_weights_of_layers_that_are_not_named(base: Path, tmp_path: Path) -> None:
    """transformers would pass them over, a merge would take them."""
    save_adapter(base, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    change(tmp_path / "a", target_modules=["q_proj"])
    uses = readers(tmp_path / "a", tmp_path)
    with pytest.raises(CheckpointError, match="4 left over"):
        uses["chat"]()
    with pytest.raises(CheckpointError, match="2 layers have LoRA weights and are not named"):
        uses["merge"]()


def test_a_whole_model_with_an_adapter_beside_it(base: Path, adapter: Path, tmp_path: Path) -> None:
    """transformers adds the adapter to the whole model's weights, other programs do not."""
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(adapter / name, both)
    uses = readers(both, tmp_path)
    uses["export"] = lambda: export(str(both), str(tmp_path / "out"))
    for use in uses.values():
        with pytest.raises(CheckpointError, match="of a whole model and those of an adapter"):
            use()


def test_a_weight_under_two_names(base: Path, tmp_path: Path) -> None:
    """The wrapped name and the plain one: one of them would be dropped in silence."""
    save_lora(base, tmp_path / "lora", adapter_only=False)
    weights = load_file(tmp_path / "lora/model.safetensors")
    name = next(key for key in weights if "q_proj.base_layer.weight" in key)
    weights[name.replace(".base_layer.", ".")] = weights[name] * 2
    save_file(weights, tmp_path / "lora/model.safetensors", {"format": "pt"})
    lora = tmp_path / "lora"
    with pytest.raises(CheckpointError, match=r"1 surplus: .*q_proj\.weight"):
        require_complete(str(lora))
    with pytest.raises(CheckpointError, match="twice, under two names"):
        merge_lora(str(lora), str(tmp_path / "merged"), check="weights")


def test_a_weight_in_two_files(base: Path, tmp_path: Path) -> None:
    export(str(base), str(tmp_path / "s"), max_shard_bytes=20_000)
    first, second = sorted((tmp_path / "s").glob("*.safetensors"))[:2]
    name, value = next(iter(load_file(first).items()))
    others = load_file(second)
    save_file({**others, name: value.clone()}, second, {"format": "pt"})
    require_complete(str(tmp_path / "s"))  # equal values do no harm
    save_file({**others, name: value * 3}, second, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"two weight files hold .* with different"):
        require_complete(str(tmp_path / "s"))
