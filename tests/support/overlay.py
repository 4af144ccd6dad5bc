"""Packages of other versions, laid over the environment's: a folder for PYTHONPATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def overlay(request: pytest.FixtureRequest, name: str, packages: tuple[str, ...]) -> Path:
    """Install once into pytest's cache folder, without what the packages depend on.

    Skips the test where pip cannot fetch them.

    Args:
        request: of a fixture.
        name: of the folder.
        packages: pinned.
    """
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("overlays") / f"{name}-{'-'.join(packages).replace('==', '')}"
    if not folder.is_dir():
        aside = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", str(aside), *packages],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"pip cannot fetch {packages[0]} here: {reason}")
        aside.rename(folder)
    return folder
