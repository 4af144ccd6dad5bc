"""The table of tasks in the docs, made of the registry.

``python -m internvl_chat.evaluation.tasks_table docs/evaluation.md`` writes it between its marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from internvl_chat.evaluation.registry import GROUPS, TASKS
from internvl_chat.evaluation.task import TaskSpec
from internvl_chat.files import written_aside

BEGIN, END = "<!-- tasks: begin -->\n", "<!-- tasks: end -->\n"


def tasks_table() -> str:
    """Markdown: a line a task, then what each group stands for."""
    head = ["task", "data", "command", "metric", "tokens", "judge", "rules", "published"]
    rows = [head, ["---"] * len(head), *(_cells(task) for task in TASKS.values())]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    groups = [f"`{name}` stands for {_listed(members)}." for name, members in GROUPS.items()]
    return "\n".join([*lines, *([""] if groups else []), *groups]) + "\n"


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
        "<br>".join(f"`{one.path}`" for one in task.data),
        f"`{command}`",
        task.metric,
        str(task.generation.max_new_tokens),
        task.judge or "-",
        ", ".join(task.rules),
        task.published.replace("|", "\\|").replace("\n", "; ") or "-",
    ]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    content = with_table(page.read_text(encoding="utf-8"))
    with written_aside(page) as aside:
        aside.write_text(content, encoding="utf-8")
