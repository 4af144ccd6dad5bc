"""The guide's training commands as they stand, on tiny checkpoints at the default paths."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

NAME = "internvl_chat_v1_2_hermes2_yi34b_448_res"
REPRODUCE = f"shell/internvl1.2/hermes2_yi34b/{NAME}_finetune.sh"
FULL = f"shell/internvl1.2/2nd_finetune/{NAME}_2nd_finetune_full.sh"
LORA = f"shell/internvl1.2/2nd_finetune/{NAME}_2nd_finetune_lora.sh"
TIMEOUT = 1200
"""Seconds; a run takes a minute on two idle cores."""
PLUS = "pretrained/InternVL-Chat-V1-2-Plus"

# Two steps of 8 and 4 samples, so that a run is over in a minute on two cores.
SMALL = {
    "BATCH_SIZE": "8",
    "PER_DEVICE_BATCH_SIZE": "1",
    "NUM_WORKERS": "1",
    "OMP_NUM_THREADS": "1",
}
SHORT = "--max_steps 2 --save_strategy no"


def run(command: str, tree: Path, output: str, **settings: str) -> str:
    """Run a line of shell in the tree; return what it printed. It must end with status 0."""
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tree,
        env={**os.environ, "PYTHON": sys.executable, "OUTPUT_DIR": output, **settings},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    log = (tree / output / "training_log.txt").read_text()
    assert done.stdout.splitlines()[-1] in log
    return done.stdout


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def tensors(folder: Path) -> dict[str, Tensor]:
    """All saved weights by name."""
    merged: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        merged |= load_file(path)
    return merged


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all saved weights."""
    return {name: tuple(value.shape) for name, value in tensors(folder).items()}


def changed_parts(before: Path, after: Path) -> set[str]:
    """Top-level modules of which any weight differs."""
    old, new = tensors(before), tensors(after)
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def test_first_command(cluster: Cluster, tree: Path) -> None:
    """Stitched from three checkpoints, everything trained, ZeRO-3 on four ranks of two nodes."""
    out = run(
        f"PARTITION='train' GPUS=4 GPUS_PER_NODE=2 PER_DEVICE_BATCH_SIZE=1 sh {REPRODUCE} {SHORT}",
        tree,
        "out/reproduce",
        **(SMALL | cluster.environment),
    )
    folder = tree / "out/reproduce"
    assert len(losses(folder)) == 2
    assert all(2 < loss < 12 for loss in losses(folder)), "about log(vocabulary of 409)"
    config = json.loads((folder / "config.json").read_text())
    assert config["llm_config"]["vocab_size"] == 409, "nine tokens added to 400"
    assert shapes(folder) == shapes(tree / PLUS), (
        "the same names and shapes as the published layout"
    )
    assert re.search(r"world[ _]size\D*4|4 ranks", out)


def test_second_command(cluster: Cluster, tree: Path) -> None:
    """From a chat checkpoint, projector and LLM trained, the ViT untouched."""
    run(
        f"PARTITION='train' GPUS=4 GPUS_PER_NODE=2 sh {FULL} {SHORT}",
        tree,
        "out/full",
        **(SMALL | cluster.environment),
    )
    before, after = tree / PLUS, tree / "out/full"
    assert len(losses(after)) == 2
    assert shapes(after) == shapes(before)
    changed = changed_parts(before, after)
    assert changed == {"language_model", "mlp1"}


def test_third_command(tree: Path) -> None:
    """LoRA on two ranks of torchrun; the base weights stay what they were."""
    run(f"GPUS=2 sh {LORA} {SHORT}", tree, "out/lora", **SMALL)
    folder = tree / "out/lora"
    assert len(losses(folder)) == 2
    adapter = {name for name in shapes(folder) if "lora_" in name}
    assert adapter, "the adapter is saved"
    assert all("language_model" in name for name in adapter)
