"""docs/eval_data.md names every file that a task reads, and every release that can be prepared."""

from __future__ import annotations

import re

import pytest

from internvl_chat.evaluation.prepare import PREPARATIONS
from internvl_chat.evaluation.registry import TASKS
from tests.support.training import ROOT

PAGE = (ROOT / "docs/eval_data.md").read_text("utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))


@pytest.mark.parametrize("task_id", TASKS)
def test_every_file_of_every_task_is_on_the_page(task_id: str) -> None:
    task = TASKS[task_id]
    assert task_id in NAMED
    assert [file.path for file in task.data if file.path not in NAMED] == []


def test_what_can_be_prepared_is_on_the_page() -> None:
    assert [task_id for task_id in PREPARATIONS if task_id not in NAMED] == []


@pytest.mark.parametrize("task_id", PREPARATIONS)
def test_files_that_a_preparation_wants_are_on_the_page(task_id: str) -> None:
    names = re.findall(
        r"[\w-]+(?:_[\w.-]+)?\.(?:json|tsv|csv|jsonl)\b", PREPARATIONS[task_id].wants
    )
    assert [name for name in names if name not in PAGE] == []
