"""Section ``dry_run``: the command that each recipe builds from its environment."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.training import ROOT

NAME = "internvl_chat_v1_2_hermes2_yi34b_448_res"
RECIPES = (
    f"shell/internvl1.2/hermes2_yi34b/{NAME}_finetune.sh",
    f"shell/internvl1.2/2nd_finetune/{NAME}_2nd_finetune_full.sh",
    f"shell/internvl1.2/2nd_finetune/{NAME}_2nd_finetune_lora.sh",
)
EXTRA = ["--learning_rate", "2e-5", "--output_dir", "else where", "--max_steps=3"]

GRID: dict[str, tuple[dict[str, str], list[str]]] = {
    "plain": ({}, []),
    "two": ({"GPUS": "2"}, []),
    "one": ({"GPUS": "1"}, []),
    "the guide's": ({"PARTITION": "x", "GPUS": "64", "PER_DEVICE_BATCH_SIZE": "8"}, []),
    "partition of two words": ({"PARTITION": "your partition"}, []),
    "32": ({"GPUS": "32", "PER_DEVICE_BATCH_SIZE": "4", "BATCH_SIZE": "512"}, []),
    "32, slurm": (
        {
            **{"GPUS": "32", "PER_DEVICE_BATCH_SIZE": "4", "BATCH_SIZE": "512", "PARTITION": "x"},
            **{"QUOTA_TYPE": "reserved", "SRUN_ARGS": "--qos=a -w n[1-4]", "CPUS_PER_TASK": "7"},
            **{"GPUS_PER_NODE": "4", "GRES": "gpu:a100:4"},
        },
        [],
    ),
    "slurm without a partition": ({"LAUNCHER": "slurm", "GPUS": "8"}, []),
    "torchrun in spite of one": ({"LAUNCHER": "pytorch", "PARTITION": "x", "GPUS": "8"}, []),
    "unknown launcher": ({"LAUNCHER": "mpi"}, []),
    "second of two machines": (
        {"GPUS": "16", "MASTER_ADDR": "a.example", "NODE_RANK": "1", "MASTER_PORT": "12345"},
        [],
    ),
    "port": ({"GPUS": "2", "MASTER_PORT": "12345"}, []),
    "batch does not divide": ({"GPUS": "2", "BATCH_SIZE": "13"}, []),
    "batch divides otherwise": ({"GPUS": "2", "BATCH_SIZE": "12"}, []),
    "no whole nodes": ({"GPUS": "12", "BATCH_SIZE": "96", "PARTITION": "x"}, []),
    "no number": ({"GPUS": "many"}, []),
    "arguments": ({"GPUS": "2"}, EXTRA),
    "batch by argument": ({"GPUS": "2"}, ["--per_device_train_batch_size=2"]),
    "paths": (
        {
            **{"GPUS": "2", "META_PATH": "my meta.json", "OUTPUT_DIR": "/data/o'ut"},
            **{"MODEL_PATH": "chat", "NUM_WORKERS": "0", "DEEPSPEED_CONFIG": "zero.json"},
        },
        [],
    ),
    "parts": (
        {"GPUS": "2", "VISION_PATH": "vit", "MLP_PATH": "mlp.pth", "LLM_PATH": "llm"},
        [],
    ),
    "another LLM": ({"GPUS": "2", "LLM_PATH": "llm"}, []),
    "model and part": ({"MODEL_PATH": "chat", "LLM_PATH": "llm"}, []),
    "without DeepSpeed": ({"GPUS": "2", "DEEPSPEED_CONFIG": ""}, []),
    "interpreter": ({"GPUS": "2", "PYTHON": "/x y/python", "PYTHONPATH": "/mine"}, []),
    "trainer": ({"GPUS": "2", "TRAINER": "other.py"}, []),
}
"""Name -> environment and arguments; DRY_RUN=1 is added."""


def run_recipe(
    recipe: str, settings: dict[str, str], arguments: Sequence[str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a recipe dry, with nothing in its environment but what is said here."""
    script = recipe if cwd == ROOT else str(ROOT / recipe)
    return subprocess.run(
        ["sh", script, *arguments],
        env={"PATH": os.environ["PATH"], "DRY_RUN": "1", **settings},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry_run_section() -> dict[str, Any]:
    """By recipe and case: exit code, the lines of stdout cut before each flag, and stderr."""
    return {recipe: _cases(recipe) for recipe in RECIPES}


def _cases(recipe: str) -> dict[str, Any]:
    found = {
        name: _told(run_recipe(recipe, settings, arguments))
        for name, (settings, arguments) in GRID.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        found["from elsewhere"] = _told(run_recipe(recipe, {"GPUS": "2"}, [], Path(folder)))
    return found


def _told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {
        "exit_code": done.returncode,
        "stdout": re.split(r" (?=-)", without_places(done.stdout)),
        "stderr": without_places(done.stderr),
    }


def without_places(text: str) -> str:
    """A text that does not tell where the repository lies."""
    return text.replace(str(ROOT), "<ROOT>")
