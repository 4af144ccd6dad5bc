"""Reading weight files by name and by range."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from internvl_chat.checkpoint.tensor_files import open_weights, read_safetensors_header
from internvl_chat.errors import CheckpointError


def test_a_range_is_read_exactly(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    halves = torch.arange(5, dtype=torch.bfloat16)
    path = tmp_path / "model.safetensors"
    save_file({"a": values, "b": halves, "c": torch.tensor(7)}, path)
    tensors = open_weights(tmp_path)
    assert tensors["a"].shape == (2, 3, 4)
    assert tensors["a"].read(5, 9).tolist() == [5.0, 6.0, 7.0, 8.0]
    assert tensors["b"].read(0, 5).equal(halves)
    assert tensors["b"].read(3, 3).numel() == 0
    assert tensors["c"].read(0, 1).tolist() == [7]


def test_shards_and_a_missing_one(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert {n: t.shape for n, t in open_weights(tmp_path).items()} == {"a": (2,), "b": (3,)}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 weight files are missing: model-00002"):
        open_weights(tmp_path)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert open_weights(tmp_path)["a"].read(0, 1).item() == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert open_weights(tmp_path)["a"].read(0, 1).item() == 1


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mlp.pth"
    torch.save({"a": torch.zeros(1), "b": Path("x")}, path)
    with pytest.raises(CheckpointError, match="no plain PyTorch state dict"):
        open_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"", "not a safetensors file"),
        (b"\x05\0\0\0\0\0\0\0{bad}", "its header is no JSON"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors_header(path)


def test_a_truncated_file_is_found_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated: "):
        read_safetensors_header(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no weights"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_weights(tmp_path / "x")
