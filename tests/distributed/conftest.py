"""Trainings that the tests of a module share; see ``tests/support/runs.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import declared, train


@pytest.fixture(scope="module")
def trainings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs of the module's table that its selected tests read."""
    module = request.node
    selected = [item for item in request.session.items if item.getparent(pytest.Module) is module]
    names = {name for item in selected for name in declared(item)}
    root = tmp_path_factory.mktemp(Path(module.path).stem)
    train(root, names, request.module.RUNS, request.module.DATASETS)
    return root


@pytest.fixture
def trained(request: pytest.FixtureRequest, trainings: Path) -> dict[str, Path]:
    """Folders of the runs that the test declares, by name, and ``model``, which they start from."""
    return {name: trainings / name for name in ("model", *declared(request.node))}
