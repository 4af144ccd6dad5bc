"""What counts as another checkpoint to a run of an evaluation that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.evaluation.fingerprints import checkpoint_fingerprint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    return tmp_path


@pytest.mark.parametrize("name", ["status.json", "arguments.json", "training_log.txt"])
def test_what_a_later_start_writes_is_not_the_model(checkpoint: Path, name: str) -> None:
    """A refused or repeated training leaves a word in the finished model's folder."""
    before = checkpoint_fingerprint(str(checkpoint))
    (checkpoint / name).write_text(json.dumps({"status": "complete", "last_start": {}}))
    assert checkpoint_fingerprint(str(checkpoint)) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_what_answers_depend_on_is(checkpoint: Path, name: str) -> None:
    before = checkpoint_fingerprint(str(checkpoint))
    (checkpoint / name).write_bytes(b"{}  ")
    assert checkpoint_fingerprint(str(checkpoint)) != before
