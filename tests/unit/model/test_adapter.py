"""Where an adapter's base is looked for, and names that loading overlooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.model.adapter import (
    COMPUTED_BUFFERS,
    find_adapter_base,
    has_model_weights,
    is_adapter,
)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


@pytest.mark.parametrize(
    ("name", "is_model"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("pytorch_model.bin", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("adapter_model.safetensors", False),
        ("training_args.bin", False),
    ],
)
def test_an_adapter_is_alone_without_the_models_weights(
    name: str, is_model: bool, tmp_path: Path
) -> None:
    touch(tmp_path / name)
    assert has_model_weights(tmp_path) == is_model
    assert not is_adapter(tmp_path)
    touch(tmp_path / "adapter_config.json")
    assert is_adapter(tmp_path) != is_model


def test_a_name_on_a_hub_is_no_adapter() -> None:
    assert not is_adapter("OpenGVLab/InternVL-Chat-V1-2")


def test_the_base_is_where_it_is_named_or_beside_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "runs" / "lora"
    adapter.mkdir(parents=True)
    values = {"base_model_name_or_path": "old/place/base"}
    assert find_adapter_base(adapter, values) == ("old/place/base", None)
    beside = tmp_path / "runs" / "base"
    touch(beside / "weights")  # a directory of this name, but no model
    assert find_adapter_base(adapter, values)[1] is None
    touch(beside / "config.json")
    assert find_adapter_base(adapter, values)[1] == beside
    inside = adapter / "old/place/base"
    touch(inside / "config.json")
    assert find_adapter_base(adapter, values)[1] == inside
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "old/place/base/config.json")
    assert find_adapter_base(adapter, values)[1] == Path("old/place/base")


def test_an_adapter_named_from_inside_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "base/config.json", tmp_path / "lora/adapter_config.json")
    monkeypatch.chdir(tmp_path / "lora")
    assert find_adapter_base(".", {"base_model_name_or_path": "/gone/base"})[1] == tmp_path / "base"


@pytest.mark.parametrize("values", [{}, {"base_model_name_or_path": None}])
def test_an_adapter_without_a_base(values: dict[str, None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        find_adapter_base(tmp_path, values)


@pytest.mark.parametrize(
    ("name", "is_computed"),
    [
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("model.rotary_emb.cos_cached", True),
        ("vision_model.embeddings.position_ids", True),
        ("vision_model.embeddings.position_embedding", False),
        ("language_model.model.layers.0.self_attn.q_proj.weight", False),
    ],
)
def test_buffers_that_are_computed(name: str, is_computed: bool) -> None:
    assert bool(COMPUTED_BUFFERS.search(name)) == is_computed
