"""Loading and saving under ZeRO-3 with one and two gloo processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModel

from tests.support.checkpoints import save_parts
from tests.support.training import torchrun

WORKER = str(Path(__file__).with_name("stitch_worker.py"))

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("world_size", [1, 2])
def test_zero3_loads_and_saves_what_a_plain_process_does(tmp_path: Path, world_size: int) -> None:
    parts = save_parts(tmp_path, vocab_size=259)
    result = torchrun(WORKER, str(tmp_path), processes=world_size, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["trainable"]["language_model LoRA"] == 2 * 4 * 232
    assert found["trainable"]["mlp1"] == 1152
    assert found["trainable"]["language_model"] == 0
    assert all("2 of the wrong shape" in problem for problem in found["problems"])
    assert len(found["problems"]) == world_size

    # What two ranks wrote loads here, whole, and new rows are the mean of the old ones.
    model = AutoModel.from_pretrained(tmp_path / "chat")
    for name, old in parts["language_model"].state_dict().items():
        new = model.language_model.state_dict()[name]
        assert new[: len(old)].equal(old), name
        if len(new) > len(old):
            mean = old.double().mean(0).float()
            assert len(new) == 268
            assert all(row.equal(mean) for row in new[len(old) :])
    assert len(list((tmp_path / "chat").glob("model-*"))) > 3
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    AutoModel.from_pretrained(tmp_path / "adapter")
