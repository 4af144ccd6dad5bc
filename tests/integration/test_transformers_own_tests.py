"""The common model tests of transformers' own repository, run on our models.

They are in transformers' source distribution, which is fetched for it; the tests of generation are
not, and ``test_common_model.py`` asks for those properties.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

from tests.support.search_path import search_path
from tests.support.training import ROOT

PARAMETERIZED = "parameterized==0.9.0"
"""What the tests are written with."""

NUM_TESTS_THAT_RUN = 200
"""Fewer would mean that the collection went wrong; the rest needs a GPU or another model."""


def pip(*args: str) -> bool:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *args]
    return subprocess.run(command, capture_output=True, timeout=300).returncode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package ``tests`` of theirs with our models in it, and what it needs beside it."""
    folder = tmp_path_factory.mktemp("transformers")
    source = f"transformers=={transformers.__version__}"
    sdist = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    if not pip("download", *sdist, source):
        pytest.skip(f"no source distribution of {source} to be had")
    if not pip("install", "--no-deps", "--target", str(folder / "site"), PARAMETERIZED):
        pytest.skip(f"{PARAMETERIZED} is not to be had")
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as archive:
        top = f"transformers-{transformers.__version__}/tests/"
        members = [member for member in archive.getmembers() if member.name.startswith(top)]
        archive.extractall(folder, members=members, filter="data")
    theirs = folder / "tests"
    (folder / top).rename(theirs)
    for module, name in (
        ("exporters/test_export", "ExportTesterMixin"),
        ("generation/test_utils", "GenerationTesterMixin"),
    ):
        path = theirs / f"{module}.py"
        path.parent.mkdir()
        (path.parent / "__init__.py").touch()
        path.write_text(f"class {name}:\n    pass\n", encoding="utf-8")
    (theirs / "__init__.py").touch()
    shutil.copy(ROOT / "tests/support/transformers_testers.py", theirs / "test_ours.py")
    return folder


@pytest.mark.slow
def test_none_of_them_fails(folder: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": search_path(folder, ROOT, folder / "site"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--tb=short", "tests/test_ours.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= NUM_TESTS_THAT_RUN
