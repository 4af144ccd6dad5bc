"""What commit 7c68937 wrote is continued, recognised and loaded by the code of now.

The files are in ``tests/fixtures/commit_7c68937``; see ``tests/fixtures/write_commit_7c68937.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.chat import load_model
from tests.fixtures.greedy import tokens
from tests.fixtures.restore import CHECKPOINTS, arguments, restore
from tests.pins.trainings import train
from tests.support.search_path import search_path
from tests.support.training import ROOT, logged

pytestmark = pytest.mark.distributed

STEP = 3
"""At which the checkpoints were written; the runs went on to step 6."""
RESUMED = ("zero3", "plain")

STRANGER = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "internvl_chat":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
import torch
from greedy import tokens
from transformers import AutoModel, AutoTokenizer

probe = json.load(open(sys.argv[2]))["probe"]
found = {}
for folder in sys.argv[3:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == probe["image_token_id"]
    found[folder] = tokens(model, probe)
assert not any(name.split(".")[0] == "internvl_chat" for name in sys.modules)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Old:
    """The fixture, restored in a folder."""

    folder: Path
    expected: dict[str, Any]

    def run(self, name: str, output_dir: Path) -> str:
        """Train as the old run did, with the code of now; returns stderr."""
        run = self.expected["runs"][name]
        argv = arguments(self.folder, run, output_dir, ROOT)
        return train(argv, processes=run["processes"], cache=self.folder / "cache")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    """Restored in a folder of its own: a base that moved since."""
    folder = tmp_path_factory.mktemp("old") / "restored"
    return Old(folder, restore(folder))


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_is_continued_as_if_it_had_not_stopped(old: Old, name: str, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    checkpoint = old.folder / name / f"checkpoint-{STEP}"
    shutil.copytree(checkpoint, output_dir / checkpoint.name)
    old.run(name, output_dir)
    for figure in ("loss", "grad_norm"):
        told = old.expected["runs"][name][figure]
        assert len(told) == 2 * STEP
        assert logged(output_dir, figure) == pytest.approx(told, rel=1e-5)
    # Started anew, it would have taken its own time for the first steps.
    before = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    seconds = [entry["step_seconds"] for entry in before]
    assert logged(output_dir, "step_seconds")[:STEP] == seconds


@pytest.mark.parametrize(("name", "root"), [("plain", "finished"), ("adapter", "adapter")])
def test_a_finished_run_is_left_alone(old: Old, name: str, root: str, tmp_path: Path) -> None:
    output_dir = tmp_path / name
    shutil.copytree(old.folder / root, output_dir)
    kept = ("trainer_state.json", "train_results.json", "config.json", "tokenizer.json")
    before = {file: (output_dir / file).read_bytes() for file in kept}
    old.run(name, output_dir)
    assert {file: (output_dir / file).read_bytes() for file in kept} == before
    assert not list(output_dir.glob("checkpoint-*"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_loads_and_answers_as_before(old: Old, name: str) -> None:
    model, tokenizer = load_model(str(old.folder / name), device="cpu")
    probe = old.expected["probe"]
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == probe["image_token_id"]
    assert tokens(model, probe) == old.expected["tokens"][name]


def test_the_adapters_base_has_moved(old: Old) -> None:
    named = json.loads((old.folder / "adapter/adapter_config.json").read_text())
    base = Path(named["base_model_name_or_path"])
    assert not base.exists(), "else the tests above say nothing of a base that moved"
    assert base.name == "base"


def test_checkpoints_load_where_the_package_is_not_installed(old: Old, tmp_path: Path) -> None:
    paths = {name: str(old.folder / name) for name in CHECKPOINTS}
    given = [str(ROOT / "tests/fixtures"), str(old.folder / "expected.json"), *paths.values()]
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, *given],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": search_path(),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
        },
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found[path] for name, path in paths.items()} == old.expected["tokens"]
