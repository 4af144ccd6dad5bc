"""The tables of tasks and of their rules in the docs, made of the registry.

``python -m internvl_chat.evaluation.tasks_table docs/evaluation.md`` writes them between the marks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from internvl_chat.evaluation.registry import GROUPS, TASKS
from internvl_chat.evaluation.task import RULES, DataFile, Rules, TaskSpec
from internvl_chat.files import written_aside

BEGIN, END = "<!-- tasks: begin -->\n", "<!-- tasks: end -->\n"
MOST_PATHS = 4
"""In a cell of the table; ``docs/eval_data.md`` names all."""


def tasks_table() -> str:
    """Markdown: a line a task, what each group stands for, then what the rules change."""
    head = ["task", "data", "command", "metric", "tokens", "judge", "rules", "published"]
    lines = _table(head, [_cells(task) for task in TASKS.values()])
    groups = [f"`{name}` stands for {_listed(members)}." for name, members in GROUPS.items()]
    lines += [*([""] if groups else []), *groups]
    changes = _table(["rules", "tasks", "what they change"], _changes(TASKS.values()))
    return "\n".join([*lines, "", "### What the rules change", "", *changes]) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _changes(tasks: Iterable[TaskSpec]) -> list[list[str]]:
    """A row for each sentence, with the tasks that share it; by set of rules."""
    shared: dict[tuple[Rules, str], list[str]] = {}
    for task in tasks:
        for rules, text in task.rule_differences.items():
            shared.setdefault((rules, text), []).append(task.id)
    return [
        [rules, _listed(tuple(ids)), text.replace("|", "\\|")]
        for rules, text in sorted(shared, key=lambda key: RULES.index(key[0]))
        for ids in (shared[rules, text],)
    ]


def with_table(text: str) -> str:
    """The page with the table as it should be.

    Raises:
        ValueError: the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN.strip()} … {END.strip()}")
    return f"{before}{BEGIN}{tasks_table()}{END}{after}"


def _cells(task: TaskSpec) -> list[str]:
    gpus = "GPUS=1 " if task.single_process else ""
    command = f"{gpus}sh evaluate.sh CHECKPOINT {task.id}"
    if task.suite == "vlmevalkit":
        command = f"run.py --data {task.id} --model CHECKPOINT"
    return [
        f"`{task.id}`",
        _places(task.data),
        f"`{command}`",
        task.metric,
        str(task.generation.max_new_tokens),
        task.judge or "-",
        ", ".join(task.rules),
        task.published.replace("|", "\\|").replace("\n", "; ") or "-",
    ]


def _places(data: Sequence[DataFile]) -> str:
    """The paths, or how many there are below which folder."""
    if len(data) <= MOST_PATHS:
        return "<br>".join(f"`{one.path}`" for one in data)
    return f"`{os.path.commonpath([one.path for one in data])}` ({len(data)} files and folders)"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    content = with_table(page.read_text(encoding="utf-8"))
    with written_aside(page) as aside:
        aside.write_text(content, encoding="utf-8")
