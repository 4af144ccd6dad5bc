"""The table of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.task import TaskSpec
from internvl_chat.evaluation.tasks.llava_bench import LLAVA_BENCH
from internvl_chat.evaluation.tasks.mmbench import MMBENCH
from internvl_chat.evaluation.tasks.mme import MME
from internvl_chat.evaluation.tasks.mmmu import MMMU
from internvl_chat.evaluation.tasks.mmvet import MMVET
from internvl_chat.evaluation.tasks.mmvp import MMVP
from internvl_chat.evaluation.tasks.mvbench import MVBENCH
from internvl_chat.evaluation.tasks.pope import POPE
from internvl_chat.evaluation.tasks.refcoco import REFCOCO
from internvl_chat.evaluation.tasks.scienceqa import SCIENCEQA
from internvl_chat.evaluation.tasks.seed import SEED
from internvl_chat.evaluation.tasks.tiny_lvlm import TINY_LVLM
from internvl_chat.evaluation.tasks.tsv import TSV_TASKS
from internvl_chat.evaluation.tasks.tsv.by_path import task_of_tsv
from internvl_chat.evaluation.tasks.vqa import VQA_GROUP, VQA_TASKS
from internvl_chat.model.suggestions import suggest


def by_id(tasks: Iterable[TaskSpec]) -> dict[str, TaskSpec]:
    """Tasks by their id.

    Raises:
        ValueError: two have the same.
    """
    table: dict[str, TaskSpec] = {}
    for task in tasks:
        if task.id in table:
            raise ValueError(f"two tasks are called {task.id}")
        table[task.id] = task
    return table


TASKS = by_id(
    [
        POPE,
        *VQA_TASKS,
        *MMMU,
        *MMBENCH,
        MMVET,
        LLAVA_BENCH,
        *TSV_TASKS,
        MME,
        SCIENCEQA,
        TINY_LVLM,
        SEED,
        MMVP,
        *REFCOCO,
        MVBENCH,
    ]
)

GROUPS: dict[str, tuple[str, ...]] = {"vqa": VQA_GROUP}
"""Ids that stand for several tasks with one model load."""


def find_tasks(names: Iterable[str]) -> list[TaskSpec]:
    """The tasks of these ids, groups taken apart, each once, in the order given.

    A path that ends in ``.tsv`` is the benchmark that the file holds.

    Raises:
        ConfigError: an id is unknown; the message offers close ones. Or two files have one name.
        DatasetError: a TSV is missing or malformed.
    """
    found: dict[str, TaskSpec] = {}
    known = [*TASKS, *GROUPS]
    for name in names:
        if name.endswith(".tsv"):
            task = task_of_tsv(Path(name))
            if found.setdefault(task.id, task).data != task.data:
                raise ConfigError(
                    f"{name} and another are both called {task.id}, as their results would be",
                    where="TASK",
                    fix="Rename the file, or ask them apart.",
                )
            continue
        if name not in known:
            near = suggest(name, known, limit=3, write=str)
            fix = f"{near} internvl-chat eval list names all.".lstrip()
            raise ConfigError(f"no task {name!r}", where="TASK", fix=fix)
        for one in GROUPS.get(name, (name,)):
            found.setdefault(one, TASKS[one])
    return list(found.values())
