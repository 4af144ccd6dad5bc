"""PYTHONPATH of child processes."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def search_path(*folders: Path) -> str:
    """These folders, and behind them those given to this process but for the repository.

    An environment may have all its packages from there; and a child that is to do without the
    repository does.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [entry for entry in given if Path(entry).resolve() != ROOT]
    return os.pathsep.join([*map(str, folders), *kept])
