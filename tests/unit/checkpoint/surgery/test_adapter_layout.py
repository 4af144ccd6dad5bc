"""Adapters that stay adapters where their base is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import InternVLForConditionalGeneration

from internvl_chat.checkpoint.surgery.adapter_layout import export_adapter
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.errors import CheckpointError
from internvl_chat.model import InternVLChatModel
from tests.support.lora_checkpoints import load_fp32, save_base

ALL = ["q_proj", "v_proj", "up_proj", "qkv", "fc1", "proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_base(folder / "base", ps_version="v2")
    for layout in ("native", "internvl_chat"):
        export(str(folder / "base"), str(folder / layout), layout=layout)
    return folder


def adapter(base: Path, directory: Path, **settings: Any) -> Path:
    values = {"r": 4, "lora_alpha": 6, "target_modules": ALL, **settings}
    values["base_model_name_or_path"] = str(base / "base")
    model = get_peft_model(load_fp32(base / "base"), LoraConfig(**values))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("native", {"use_dora": True, "use_rslora": True}),
        ("native", {"rank_pattern": {"qkv": 2}, "alpha_pattern": {r".*layers\.1\..*q_proj": 1}}),
        ("native", {"modules_to_save": ["mlp1", "lm_head"]}),
        ("internvl_chat", {"modules_to_save": ["mlp1"], "rank_pattern": {"qkv": 2}}),
    ],
    ids=str,
)
def test_peft_puts_it_on_the_exported_base(
    base: Path, tmp_path: Path, layout: str, settings: dict[str, Any]
) -> None:
    own = adapter(base, tmp_path / "a", **settings)
    report = export_adapter(str(own), str(tmp_path / "out"), base=str(base / layout))
    assert report.logits is not None
    assert report.logits < 1e-4  # compared by the function itself, on an image and a question
    kind: Any = InternVLForConditionalGeneration if layout == "native" else InternVLChatModel
    plain = kind.from_pretrained(base / layout)
    model = PeftModel.from_pretrained(plain, tmp_path / "out")
    scales = {one.scaling["default"] for one in model.modules() if getattr(one, "lora_A", None)}
    assert max(scales) == (3.0 if settings.get("use_rslora") or "rank_pattern" in settings else 1.5)


def test_its_card_says_what_loads_it(base: Path, tmp_path: Path) -> None:
    own = adapter(base, tmp_path / "a")
    for layout, auto in (("native", "AutoModelForImageTextToText"), ("internvl_chat", "AutoModel")):
        export_adapter(str(own), str(tmp_path / layout), base=str(base / layout))
        card = ModelCard.load(tmp_path / layout / "README.md")
        assert (card.data.base_model, card.data.library_name) == (layout, "peft")
        assert f'base = {auto}.from_pretrained("{layout}", ' in card.content
        assert "code lies beside" not in card.content
        assert "1. `export --adapter-for` of `a` + `base`" in card.content


def test_another_base_is_told(base: Path, tmp_path: Path) -> None:
    own = adapter(base, tmp_path / "a")
    save_base(tmp_path / "wide", llm={"intermediate_size": 48})
    for other, told in (
        (own, "is an adapter itself"),
        (tmp_path / "wide", "is another model: the adapter goes into"),
        (tmp_path / "none", "no such directory"),
    ):
        with pytest.raises(CheckpointError, match=told):
            export_adapter(str(own), str(tmp_path / "out"), base=str(other))


def test_a_base_of_other_weights_is_told(base: Path, tmp_path: Path) -> None:
    own = adapter(base, tmp_path / "a")
    save_base(tmp_path / "other", seed=9, ps_version="v2")
    with pytest.raises(CheckpointError, match="Give --adapter-for the directory of what export"):
        export_adapter(str(own), str(tmp_path / "out"), base=str(tmp_path / "other"))


def test_only_adapters_are_kept_apart(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no adapter beside a base"):
        export_adapter(str(base / "base"), str(tmp_path / "out"), base=str(base / "native"))
