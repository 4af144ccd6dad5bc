"""The first hour of a newcomer, typed from the page into a clone made as the page says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.page_runs import PageRun, warm_programs
from tests.support.pages import ROOT
from tests.walkthrough.walk import WHOLE, clone_as_typed, walk


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="no git repository"
)
def test_from_clone_to_a_served_adapter(tmp_path: Path) -> None:
    clone = clone_as_typed(tmp_path / "home")
    (tmp_path / "bin").mkdir()
    with warm_programs(tmp_path / "bin", clone) as programs:
        more = {"INTERNVL_CHAT_CACHE": str(tmp_path / "cache"), "no_proxy": "127.0.0.1"}
        walk(PageRun(folder=clone, shared=tmp_path, programs=programs, more=more, whole=WHOLE))
