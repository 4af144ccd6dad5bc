"""``eval run`` and ``evaluate.sh`` on two nodes of a real Slurm, tiny model, CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.support.evaluation.pope import write_pope
from tests.support.training import ROOT, environment

pytestmark = pytest.mark.slurm

MODEL = str(ROOT / "pretrained/internvl-chat-tiny")
RESULTS = "results/pretrained_internvl-chat-tiny/pope"
ASKED = (MODEL, "pope", "--num-beams", "1", "--max-new-tokens", "6")
COMMAND = (sys.executable, "-m", "internvl_chat", "eval", "run", *ASKED)
SCRIPT = ("sh", str(ROOT / "evaluate.sh"), *ASKED)
ON_TWO_NODES = ("srun", "--partition=train", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1")


def asked(
    folder: Path, *command: str, cluster: Cluster | None = None
) -> subprocess.CompletedProcess[str]:
    """Run in a folder with the data of eight images."""
    folder.mkdir()
    write_pope(folder, num_images=8)
    settings = {} if cluster is None else cluster.environment
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(PYTHON=sys.executable, **settings),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process."""
    folder = tmp_path_factory.mktemp("alone") / "work"
    done = asked(folder, *COMMAND)
    assert done.returncode == 0, done.stderr
    return folder / RESULTS


@pytest.mark.parametrize("command", [COMMAND, SCRIPT], ids=["eval run", "evaluate.sh"])
def test_two_nodes_answer_as_one_process(
    cluster: Cluster, alone: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = asked(tmp_path / "work", *ON_TWO_NODES, *command, cluster=cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    found = tmp_path / "work" / RESULTS
    for name in ("answers.jsonl", "score.json"):
        assert (found / name).read_bytes() == (alone / name).read_bytes(), name
    timings = [json.loads(line) for line in (found / "timing.jsonl").open(encoding="utf-8")]
    assert {line["rank"] for line in timings} == {0, 1}
    assert done.stdout.count("results: ") == 1, "rank 0 alone speaks"


def test_exit_codes_come_through_srun(cluster: Cluster, tmp_path: Path) -> None:
    done = asked(tmp_path / "a", *ON_TWO_NODES, *COMMAND[:5], MODEL, "pop", cluster=cluster)
    assert done.returncode == 2, done.stderr
    assert "Did you mean pope?" in done.stderr
    folder = tmp_path / "b"
    folder.mkdir()
    write_pope(folder, num_images=2)
    (folder / "data/pope/val2014/COCO_val2014_000000000001.jpg").write_bytes(b"none")
    done = subprocess.run(
        [*ON_TWO_NODES, *COMMAND],
        cwd=folder,
        env=environment(**cluster.environment),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert "3 questions could not be asked" in done.stdout
    assert "Traceback" not in done.stderr
