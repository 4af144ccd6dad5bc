"""The run file for a cluster, by the command that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.support.run_files import FOLDER, command_of, run_command

SMALL = {
    "--partition=YOURS": "--partition=train",
    "--gres=gpu:8": "--gres=gpu:1",
    "--ntasks=16": "--ntasks=2",
    "--ntasks-per-node=8": "--ntasks-per-node=1",
    "--cpus-per-task=10": "--cpus-per-task=1",
}
"""Words of the command, and what the cluster of the tests has."""


@pytest.mark.slow
@pytest.mark.slurm
def test_whole_on_slurm(cluster: Cluster, tmp_path: Path) -> None:
    words = command_of(FOLDER / "full_slurm.yaml")
    command = [SMALL.get(word, word) for word in words]
    assert set(SMALL) <= set(words)
    said = run_command(command, tmp_path / "out", **cluster.environment)
    assert "what trains: the LLM, the projector" in said
    assert "4 per rank x 2 ranks x 2 accumulation" in said
    assert (tmp_path / "out/model.safetensors").is_file()
