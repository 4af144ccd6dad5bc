from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Derived files of a test stay its own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("INTERNVL_CHAT_CACHE", str(path))
    return path
