"""LoRA by PEFT's settings: what flags make, what PEFT wrote and training continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from internvl_chat.chat import load_model
from internvl_chat.checkpoint.load import build_model, inspect_checkpoint
from internvl_chat.checkpoint.lora import adapter_lines, apply_freezing_and_lora
from internvl_chat.checkpoint.names import is_lora
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.checkpoint.surgery.merge import merge_lora
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model import InternVLChatModel
from internvl_chat.train.inherited import carried_ranks
from tests.support.checkpoints import config_for
from tests.support.lora_checkpoints import FROZEN, load_fp32, logits_for, save_base

TOLERANCE = 2e-5
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAYER = "language_model.model.layers.0"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


def peft_adapter(base: Path, directory: Path, **settings: Any) -> Tensor:
    """What PEFT alone writes after a training; returns the logits of the model with it."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **settings}
    wrapped = get_peft_model(load_fp32(base), LoraConfig(**settings), autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    logits = logits_for(wrapped.base_model.model)
    wrapped.save_pretrained(directory)
    path = directory / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "base_model_name_or_path": str(base)}))
    return logits


def built(path: Path, **flags: Any) -> InternVLChatModel:
    build = config_for(path, **{**FROZEN, **flags})
    model = build_model(build, load_tokenizer(str(path)))
    apply_freezing_and_lora(model, build.trainable)
    return model


def saved(model: InternVLChatModel, base: Path, directory: Path, **options: Any) -> Path:
    directory.mkdir()
    save_checkpoint_files(model, load_tokenizer(str(base)), directory, **options)
    return directory


def trained_a_little(model: InternVLChatModel) -> InternVLChatModel:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def training(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def settings_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 3},
        {"use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        {"use_dora": True, "target_modules": ["q_proj", "gate_proj"]},
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
        },
        {"target_modules": r".*layers\.1\..*(q_proj|fc1)"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0.*"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"modules_to_save": ["mlp1", "lm_head"]},
        {"target_modules": ALL, "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_adapters_of_peft_continue_as_they_are(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    wanted = peft_adapter(base, tmp_path / "a", **settings)
    has_vision = str(settings.get("target_modules")).endswith(("fc1)", "all-linear"))
    model = built(tmp_path / "a", use_llm_lora=4, use_backbone_lora=4 if has_vision else 0)
    assert logits_for(model).equal(wanted)
    lora = {name for name, _ in model.named_parameters() if is_lora(name)}
    assert lora
    assert lora <= training(model)
    whole = training(model) - lora
    assert any("lm_head" in name for name in whole) is ("modules_to_save" in settings)
    assert not any("mlp1" in name for name in whole)  # it has a flag of its own
    out = saved(trained_a_little(model), base, tmp_path / "out")
    peft = PeftModel.from_pretrained(load_fp32(base), str(out))
    assert logits_for(peft.base_model.model).equal(logits_for(model))
    before, after = settings_of(tmp_path / "a"), settings_of(out)
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern"):
        assert after[name] == before[name], name


def test_a_part_of_an_adapter_that_is_not_asked_for_stays(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peft_adapter(base, tmp_path / "a", target_modules=["q_proj", "fc1"])
    model = built(tmp_path / "a", use_llm_lora=4)
    assert not any(name.startswith("vision_model") for name in training(model))
    assert "the vision tower stays as it is: --use_backbone_lora 4 trains it on" in caplog.text


def test_what_no_training_continues(base: Path, tmp_path: Path) -> None:
    for number, (settings, told) in enumerate(
        (
            ({"bias": "lora_only"}, "biases that were trained"),
            ({"target_modules": ["embed_tokens"]}, "sits on the token embeddings"),
            ({"trainable_token_indices": [7]}, "sits on the token embeddings"),
        )
    ):
        peft_adapter(base, tmp_path / str(number), **settings)
        with pytest.raises(CheckpointError, match=told):
            built(tmp_path / str(number), use_llm_lora=4)


@pytest.mark.parametrize(
    ("flags", "wanted", "scales"),
    [
        ({"lora_alpha": 8.0}, {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05}, {2.0}),
        ({"lora_alpha": 4.0, "lora_dropout": 0.0}, {"lora_alpha": 4, "lora_dropout": 0.0}, {1.0}),
        ({"use_rslora": True}, {"use_rslora": True, "lora_alpha": 8}, {4.0}),
        ({"use_dora": True, "lora_target_modules": ["q_proj"]}, {"use_dora": True}, {2.0}),
        ({"use_backbone_lora": 2, "lora_alpha": 6.0}, {"lora_alpha": 6}, {1.5, 3.0}),
        ({"use_backbone_lora": 2, "lora_dropout": 0.0}, {"lora_alpha": 8}, {2.0}),
    ],
    ids=str,
)
def test_flags_become_pefts_settings(
    base: Path, tmp_path: Path, flags: dict[str, Any], wanted: dict[str, Any], scales: set[float]
) -> None:
    model = built(base, **{"use_llm_lora": 4, **flags})
    assert logits_for(model).allclose(logits_for(load_fp32(base)), atol=1e-6)  # starts as nothing
    trained_a_little(model)
    out = saved(model, base, tmp_path / "out")
    written = settings_of(out)
    assert {name: written[name] for name in wanted} == wanted
    peft = PeftModel.from_pretrained(load_fp32(base), str(out))
    layers = [one for one in peft.modules() if getattr(one, "lora_A", None)]
    assert {layer.scaling["default"] for layer in layers} == scales
    assert logits_for(peft.base_model.model).equal(logits_for(model))
    assert logits_for(load_model(str(out))[0]).equal(logits_for(model))


def test_the_log_says_what_the_adapter_is(base: Path) -> None:
    flags: dict[str, Any] = {"lora_alpha": 4, "lora_dropout": 0.1, "use_dora": True}
    flags["lora_target_modules"] = ["q_proj", "v_proj"]
    lines = adapter_lines(built(base, use_llm_lora=4, use_backbone_lora=2, **flags))
    assert lines == [
        "vision_model LoRA: rank 2, alpha 4, scale 2, dropout 0.1, DoRA, on 12 layers: "
        "qkv, proj, fc1, fc2",
        "language_model LoRA: rank 4, alpha 4, scale 1, dropout 0.1, DoRA, on 4 layers: "
        "q_proj, v_proj",
    ]


@pytest.mark.parametrize(
    ("words", "count", "written"),
    [
        (["all-linear"], 14, r"language_model\..*\.(?:" + "|".join(sorted(ALL)) + ")"),
        (["q_proj"], 2, r"language_model\..*\.(?:q_proj)"),
        (["q_proj", "mlp.up_proj"], 4, r"language_model\..*\.(?:q_proj|up_proj)"),
        (["q_proj,v_proj"], 4, r"language_model\..*\.(?:q_proj|v_proj)"),
        ([r".*layers\.0.*q_proj"], 1, rf"{LAYER}.self_attn.q_proj".replace(".", r"\.")),
        ([r"model\.layers\.0\.self_attn\.q_proj"], 1, None),
        (["layers.1.self_attn.o_proj"], 1, None),
    ],
)
def test_targets(base: Path, words: list[str], count: int, written: str | None) -> None:
    plan = inspect_checkpoint(
        config_for(base, **FROZEN, use_llm_lora=4, lora_target_modules=words),
        load_tokenizer(str(base)),
    )
    settings = plan.config.lora
    assert sum(".lora_A." in name for name in plan.tensors) == count
    # The usual choice is the original's two ranks, with no settings beside them.
    assert settings is not None
    assert written is None or settings["target_modules"] == written


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"lora_target_modules": ["q_prj"]}, r"matches no linear.*Did you mean q_proj\? Its.*up_p"),
        (
            {"lora_target_modules": ["q_proj", "w_proj"]},
            "modules w_proj: matches no",
        ),
        ({"lora_target_modules": ["q_(proj"]}, "is no name and no regular expression"),
        ({"lora_target_modules": ["qkv"]}, "is in the vision tower"),
        ({"lora_target_modules": ["lm_head"]}, "trains by --modules_to_save"),
        ({"lora_target_modules": ["q_proj", "all-linear"]}, "means every linear layer"),
        ({"modules_to_save": ["lm_haed"]}, "no module of the model.*Did you mean lm_head"),
        ({"modules_to_save": ["mlp"]}, "a layer trains whole or with LoRA"),
        ({"modules_to_save": [f"{LAYER}.self_attn.q_proj"]}, "a layer trains whole or with LoRA"),
        ({"lora_alpha": 0.0}, r"--lora_alpha 0: want a number > 0"),
        ({"lora_dropout": 1.0}, r"--lora_dropout 1: want 0 <= dropout < 1"),
        ({"lora_alpha": 8.0, "use_llm_lora": 0}, "--lora_alpha 8.0 without LoRA. Add --use_llm_l"),
        (
            {"lora_target_modules": ["qkv"], "use_llm_lora": 0, "use_backbone_lora": 2},
            "names layers of the LLM, which gets no LoRA",
        ),
    ],
    ids=str,
)
def test_wrong_values_are_refused_before_a_weight_is_read(
    base: Path, flags: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        inspect_checkpoint(
            config_for(base, **{**FROZEN, "freeze_mlp": False, "use_llm_lora": 4, **flags}),
            load_tokenizer(str(base)),
        )


def test_tied_tables_are_not_parted(tmp_path: Path) -> None:
    tied = save_base(tmp_path / "tied", llm={"tie_word_embeddings": True})
    with pytest.raises(ConfigError, match="ties its head to the token embeddings"):
        built(tied, use_llm_lora=4, modules_to_save=["embed_tokens"])


def test_flags_against_the_adapter_that_goes_on(base: Path, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "a", lora_alpha=3, target_modules=["q_proj", "v_proj"])

    def told(**flags: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            built(tmp_path / "a", **{"use_llm_lora": 4, **flags})
        return str(caught.value)

    assert "carries alpha 3, which is what its weights were trained for" in told(lora_alpha=8.0)
    assert "carries use_dora False" in told(use_dora=True)
    assert "an adapter on q_proj, v_proj" in told(lora_target_modules=["q_proj"])
    assert "of rank 4, not 8" in told(use_llm_lora=8)
    assert "none on this tower" in told(use_backbone_lora=2)
    same: dict[str, Any] = {"lora_alpha": 3.0, "lora_target_modules": ["q_proj", "v_proj"]}
    model = built(tmp_path / "a", use_llm_lora=4, **same, use_rslora=False, lora_dropout=0.25)
    layer: Any = model.get_submodule(f"{LAYER}.self_attn.q_proj")
    assert layer.lora_dropout["default"].p == 0.25  # no part of what the weights compute


def test_modules_to_save_train_whole(base: Path, tmp_path: Path) -> None:
    model = built(base, use_llm_lora=4, modules_to_save=["lm_head", "embed_tokens"])
    whole = {name for name in training(model) if not is_lora(name)}
    assert {name.rsplit(".", 2)[-2] for name in whole} == {"lm_head", "embed_tokens"}
    out = saved(trained_a_little(model), base, tmp_path / "out")
    assert settings_of(out)["modules_to_save"] == ["embed_tokens", "lm_head"]
    again = built(out, use_llm_lora=4)
    assert training(again) == training(model)
    assert logits_for(again).equal(logits_for(model))
    peft = PeftModel.from_pretrained(load_fp32(base), str(out))
    assert logits_for(peft.base_model.model).equal(logits_for(model))


@pytest.mark.parametrize("use_dora", [False, True])
def test_settings_inside_a_whole_checkpoint(base: Path, tmp_path: Path, use_dora: bool) -> None:
    """Where no checkpoint on disk is the rest of the model, its own holds the adapter."""
    flags: dict[str, Any] = {"use_llm_lora": 4, "lora_alpha": 2.0, "use_dora": use_dora}
    flags["lora_target_modules"] = ["q_proj", "down_proj"]
    model = trained_a_little(built(base, **flags))
    whole = saved(model, base, tmp_path / "whole", adapter_only=False)
    wanted = logits_for(model)
    assert logits_for(load_fp32(whole)).equal(wanted)
    again = built(whole, use_llm_lora=4)
    assert logits_for(again).equal(wanted)
    assert training(again) == training(model)
    merge_lora(str(whole), str(tmp_path / "merged"))
    assert (logits_for(load_fp32(tmp_path / "merged")) - wanted).abs().max() < TOLERANCE
    assert "lora" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_a_merge_of_dora_is_pefts(base: Path, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "a", use_dora=True, use_rslora=True, target_modules=ALL)
    merge_lora(str(tmp_path / "a"), str(tmp_path / "merged"))
    peft = PeftModel.from_pretrained(load_fp32(base), str(tmp_path / "a"))
    wanted = peft.merge_and_unload().state_dict()
    found = load_fp32(tmp_path / "merged").state_dict()
    assert all((wanted[name] - value).abs().max() < 1e-6 for name, value in found.items())


def test_dora_on_int8_layers_is_refused_on_a_cpu(base: Path, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "a", use_dora=True)
    with pytest.raises(CheckpointError, match="DoRA does not work on int8 layers on a CPU"):
        load_model(str(tmp_path / "a"), device="cpu", load_in_8bit=True)


def test_ranks_that_a_run_without_flags_goes_on_with(base: Path, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "a", target_modules=["q_proj", "fc1"], rank_pattern={"fc1": 2})
    assert carried_ranks(str(tmp_path / "a")) == (4, 2)
    assert carried_ranks(str(base)) == (0, 0)
    model = built(base, use_llm_lora=4, lora_alpha=2.0)
    for name, only in (("adapter", None), ("inside", False)):
        assert carried_ranks(str(saved(model, base, tmp_path / name, adapter_only=only))) == (4, 0)
