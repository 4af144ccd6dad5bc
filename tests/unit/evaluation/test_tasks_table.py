"""The docs list every task."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from internvl_chat.evaluation import tasks_table
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.task import TaskSpec
from internvl_chat.evaluation.tasks.tsv.choice import choice_task, mmmu_test_task
from internvl_chat.evaluation.tasks.tsv.hallusionbench import yes_no_task
from internvl_chat.evaluation.tasks.tsv.ocrbench import short_task
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
    assert lines[2].endswith("| F1 of yes and no | 100 | gpt | 2024, later, official | a\\|b |")
    assert "`run.py --data X --model CHECKPOINT`" in lines[2]
    assert "| `data/pope` (5 files and folders) |" in lines[2]
    assert "`all` stands for `X`, `Y`." in lines
    with pytest.raises(ValueError, match="tasks: begin"):
        with_table("no marks")


BY_PATH = [choice_task("X"), yes_no_task("X"), short_task("X"), mmmu_test_task("X")]


@pytest.mark.parametrize("task", [*TASKS.values(), *BY_PATH], ids=lambda task: task.id)
def test_each_set_of_rules_but_the_first_says_what_it_changes(task: TaskSpec) -> None:
    assert set(task.rule_differences) == set(task.rules[1:])
    for text in task.rule_differences.values():
        assert re.fullmatch(r"\S(.*[^\s.])?", text)


def test_what_a_server_scores_has_one_set_of_rules() -> None:
    """Unless another asks otherwise, as in the TSV family."""
    served = [task for task in TASKS.values() if task.score is None and task.suite == "internvl"]
    assert {task.id: task.rules for task in served} == {task.id: ("2024",) for task in served}


def test_tasks_that_change_alike_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pope = replace(TASKS["pope"], rule_differences={"later": "the prompt has no space"})
    tasks = {name: replace(pope, id=name) for name in ("X", "Y")}
    other = replace(tasks["Y"], id="Z", rule_differences={"later": "a|b", "official": "c"})
    monkeypatch.setattr(tasks_table, "TASKS", {**tasks, "Z": other})
    monkeypatch.setattr(tasks_table, "GROUPS", {})
    rows = tasks_table.tasks_table().partition("### What the rules change")[2].splitlines()[4:]
    assert rows[0].startswith("| later | `X`, `Y` | the prompt has no space")
    assert rows[1:] == ["| later | `Z` | a\\|b |", "| official | `Z` | c |"]
