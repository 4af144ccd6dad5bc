"""Child processes of the tests find what this process was given by PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.search_path import ROOT, search_path
from tests.support.training import environment


def test_packages_of_pythonpath_reach_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given_by_pythonpath.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), "", str(ROOT)]))
    assert search_path() == str(tmp_path)
    assert search_path(ROOT) == os.pathsep.join([str(ROOT), str(tmp_path)])
    command = [sys.executable, "-P", "-c", "import given_by_pythonpath, tests.support"]
    subprocess.run(command, env=environment(), cwd=tmp_path, check=True)


def test_nothing_but_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert (search_path(), search_path(ROOT)) == ("", str(ROOT))
