"""What tells one model from another: content, not places."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from internvl_chat.checkpoint.identity import model_identity


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("about")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 70_000)  # over 16 MiB
    return folder


def change_bytes(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"\x07", b"\x08"))


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (lambda folder: (folder / "README.md").write_text("more"), True),
        (lambda folder: (folder / "trainer_state.json").write_text("{}"), True),
        (lambda folder: (folder / "optimizer.pt").write_text("x"), True),
        (lambda folder: (folder / "rng_state_0.pth").write_text("x"), True),
        (lambda folder: (folder / "config.json").write_text("[]"), False),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), False),
        (change_bytes, False),
    ],
)
def test_what_counts(
    model: Path, tmp_path: Path, change: Callable[[Path], object], is_same: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert model_identity(copy) == model_identity(model)
    change(copy)
    assert (model_identity(copy) == model_identity(model)) is is_same


def test_an_adapter_is_told_with_its_base(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text("weights")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(model)}))
    before = model_identity(adapter)
    assert before is not None
    (model / "config.json").write_text("[]")
    assert model_identity(adapter) != before
    shutil.rmtree(model)
    assert model_identity(adapter) is None


def test_a_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "mlp.pth").write_text("a")
    assert model_identity(tmp_path / "mlp.pth") is not None
    assert model_identity(tmp_path / "none") is None
