"""A Slurm cluster of two nodes and a tree with tiny checkpoints, made once for all tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, install, missing_programs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two idle nodes of two pretended GPUs each, partition ``train``."""
    if os.geteuid() != 0:
        pytest.skip("starting Slurm's daemons needs root")
    if missing_programs() and not install():
        pytest.skip(f"not installed and not to be had here: {', '.join(missing_programs())}")
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guide's commands run: links to the code, tiny checkpoints, the nine datasets."""
    from tests.support.tiny_tree import make_tree

    return make_tree(tmp_path_factory.mktemp("tree") / "internvl_chat_1_2")
