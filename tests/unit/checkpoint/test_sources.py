"""Where a model's files are, before any of them is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.checkpoint.artifacts import (
    PREPROCESSOR_NAME,
    decode_config_of,
    normalize_type_of,
    preprocessor_config,
)
from internvl_chat.checkpoint.sources import (
    find_chat_config,
    find_companion,
    is_bare_adapter,
    require_config,
    vision_config_of,
)
from internvl_chat.config import DecodeConfig
from internvl_chat.errors import CheckpointError


def _write_adapter(directory: Path, base: str) -> Path:
    directory.mkdir()
    values = {"peft_type": "LORA", "base_model_name_or_path": base}
    (directory / "adapter_config.json").write_text(json.dumps(values))
    return directory


def test_a_model_has_a_configuration(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(CheckpointError) as caught:
        require_config(str(nowhere))
    advice = "Correct the path, or give a model on the hub as ORG/NAME."
    assert str(caught.value) == f"{nowhere}: no such directory. {advice}"
    with pytest.raises(CheckpointError) as caught:
        require_config(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no config.json in it. {advice}"
    (tmp_path / "config.json").write_text("{}")
    assert require_config(tmp_path) == find_chat_config(tmp_path) == tmp_path / "config.json"


def test_an_adapter_of_peft_alone_has_its_base_s_configuration(tmp_path: Path) -> None:
    base = tmp_path / "base"
    adapter = _write_adapter(tmp_path / "adapter", str(base))
    assert is_bare_adapter(adapter)
    with pytest.raises(CheckpointError, match=f"its base model is not at {base}"):
        find_chat_config(adapter)
    base.mkdir()
    (base / "config.json").write_text("{}")
    assert find_chat_config(str(adapter)) == base / "config.json"
    with pytest.raises(CheckpointError, match=r"no config\.json in it"):
        require_config(adapter)


@pytest.mark.parametrize("named", ["base", "/moved/since/base"])
def test_a_base_beside_the_adapter_is_found(tmp_path: Path, named: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    adapter = _write_adapter(tmp_path / "adapter", named)
    assert find_chat_config(adapter) == base / "config.json"


def test_an_adapter_that_training_wrote_has_its_own(tmp_path: Path) -> None:
    adapter = _write_adapter(tmp_path / "adapter", str(tmp_path / "gone"))
    (adapter / "config.json").write_text("{}")
    assert not is_bare_adapter(adapter)
    assert find_chat_config(adapter) == adapter / "config.json"


def test_an_adapter_without_a_base(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names no base_model_name_or_path"):
        find_chat_config(_write_adapter(tmp_path / "adapter", ""))


def test_a_small_file_is_beside_the_adapter_or_beside_its_base(tmp_path: Path) -> None:
    name = "preprocessor_config.json"
    base = tmp_path / "base"
    base.mkdir()
    adapter = _write_adapter(tmp_path / "adapter", str(base))
    with pytest.raises(CheckpointError, match=f"its base model is not at {base}"):
        find_companion(adapter, name)
    (base / "config.json").write_text("{}")
    assert find_companion(str(adapter), name) == base / name
    (adapter / name).write_text("{}")
    assert find_companion(adapter, name) == adapter / name
    assert find_companion(base, name) == base / name  # where it would be
    (adapter / name).unlink()
    (adapter / "model.safetensors").touch()  # the original layout: a model with its adapter inside
    assert find_companion(adapter, name) == adapter / name


def test_pixel_statistics_of_an_adapter_are_its_base_s(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    values = preprocessor_config(448, "clip")
    (base / PREPROCESSOR_NAME).write_text(json.dumps(values))
    adapter = _write_adapter(tmp_path / "adapter", str(base))
    assert normalize_type_of(base) == normalize_type_of(adapter) == "clip"
    assert decode_config_of(base) == decode_config_of(adapter) == DecodeConfig.as_stored()
    rule = DecodeConfig.as_shown()
    (base / PREPROCESSOR_NAME).write_text(json.dumps({**values, **rule.stored()}))
    assert decode_config_of(base) == decode_config_of(adapter) == rule


def test_the_vision_tower_s_configuration(tmp_path: Path) -> None:
    tower = {"model_type": "intern_vit_6b", "patch_size": 14}
    for number, content in enumerate((tower, {"vision_config": tower, "llm_config": {}})):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(content))
        assert vision_config_of(directory) == tower
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="model_type is 'llama', wanted 'intern_vit_6b'"):
        vision_config_of(tmp_path)
