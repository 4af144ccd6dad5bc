"""The docs list every task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from internvl_chat.evaluation import tasks_table
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.tasks_table import with_table
from tests.support.training import ROOT


def test_the_page_holds_the_table() -> None:
    """Else: python -m internvl_chat.evaluation.tasks_table docs/evaluation.md."""
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert page == with_table(page)


def test_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    tsv = replace(TASKS["pope"], id="X", suite="vlmevalkit", judge="gpt", published="a|b")
    monkeypatch.setattr(tasks_table, "TASKS", {"X": tsv})
    monkeypatch.setattr(tasks_table, "GROUPS", {"all": ("X", "Y")})
    lines = tasks_table.tasks_table().splitlines()
    assert lines[2].endswith("| F1 of yes and no | 100 | gpt | 2024, later | a\\|b |")
    assert "`run.py --data X --model CHECKPOINT`" in lines[2]
    assert lines[-1] == "`all` stands for `X`, `Y`."
    with pytest.raises(ValueError, match="tasks: begin"):
        with_table("no marks")
