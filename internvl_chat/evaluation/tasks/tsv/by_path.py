"""Any VLMEvalKit-format TSV as a benchmark: what it is, is told by its name, else its columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.task import DataRoot, Question, Rules, TaskSpec
from internvl_chat.evaluation.tasks.tsv import TSV_TASKS
from internvl_chat.evaluation.tasks.tsv.choice import choice_task, mmmu_test_task
from internvl_chat.evaluation.tasks.tsv.hallusionbench import hallusion_task, yes_no_task
from internvl_chat.evaluation.tasks.tsv.ocrbench import short_task
from internvl_chat.evaluation.tsv import TsvTable, read_table


def task_of_tsv(path: Path) -> TaskSpec:
    """The benchmark that a TSV file is.

    A name of the family, with ``_local`` or not, is that benchmark. Else: option columns with
    values make it multiple choice, answers that are all Yes or No a yes-or-no set, any others a set
    with short answers.

    Raises:
        DatasetError: missing, malformed, or without an answer column.
    """
    absolute = path.absolute()
    name = absolute.stem.removesuffix("_local")
    for task in TSV_TASKS:
        if task.id == name:
            return _moved(task, absolute)
    if name == "MMMU_TEST":
        return mmmu_test_task(name, file=str(absolute))
    if "hallusionbench" in name.lower():
        return hallusion_task(name, file=str(absolute))
    table = read_table(absolute, "official")
    if "A" in table.columns and any(row["A"] is not None for row in table.rows):
        return choice_task(name, file=str(absolute))
    if "answer" not in table.columns:
        has = ", ".join(table.columns)
        raise DatasetError('has no column "answer"', where=str(path), fix=f"It has {has}.")
    if _is_yes_no(table):
        return yes_no_task(name, file=str(absolute))
    return short_task(name, file=str(absolute))


def _moved(task: TaskSpec, path: Path) -> TaskSpec:
    """A task of the family whose file lies elsewhere than in ``LMUData``."""

    def load(root: DataRoot, rules: Rules) -> list[Question]:
        return task.load(DataRoot(folder=root.folder, lmu_data=path.parent), rules)

    return replace(task, data=(replace(task.data[0], path=str(path)),), load=load)


def _is_yes_no(table: TsvTable) -> bool:
    answers = {
        str(row["answer"]).strip().lower() for row in table.rows if row["answer"] is not None
    }
    return bool(answers) and answers <= {"yes", "no"}
