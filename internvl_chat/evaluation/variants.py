"""Tasks as flags of the original evaluators change them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.task import Rules, TaskSpec


def as_reasoned(tasks: Sequence[TaskSpec], rules: Rules | None) -> list[TaskSpec]:
    """The tasks as ``--cot`` asks them.

    Args:
        tasks: all must have such a form.
        rules: that the user chose; None are those of 2024, which have none.

    Raises:
        ConfigError: a task has no such form, or not under these rules.
    """
    found = [task.reasoning for task in tasks if task.reasoning is not None]
    if len(found) < len(tasks):
        without = ", ".join(task.id for task in tasks if task.reasoning is None)
        raise ConfigError(
            f"{without} cannot be asked with a chain of thought",
            where="--cot",
            fix="The evaluators of scienceqa and pope have it, no other.",
        )
    for task in found:
        if (rules or "2024") not in task.rules:
            raise ConfigError(
                f"{task.id} has no chain of thought under the rules of {rules or '2024'}",
                where="--cot",
                fix=f"Add --rules {' or '.join(task.rules)}.",
            )
    return found


def require_flags(
    tasks: Sequence[TaskSpec], given: Iterable[str], everywhere: Iterable[TaskSpec]
) -> list[str]:
    """See that flags of single evaluators meet a task that has them.

    Args:
        tasks: that are asked.
        given: flags, such as ``--few-shot``.
        everywhere: all tasks, to say where a flag belongs.

    Returns:
        A sentence for each flag that none of the tasks does anything with.

    Raises:
        ConfigError: none of the tasks has a flag.
    """
    idle = []
    for flag in given:
        effects = [task.original_flags[flag] for task in tasks if flag in task.original_flags]
        if not effects:
            owners = [task.id for task in everywhere if flag in task.original_flags]
            raise ConfigError(
                f"is no flag of {', '.join(task.id for task in tasks)}",
                where=flag,
                fix=f"Leave it out; it is of {', '.join(owners)}.",
            )
        if not any(effects):
            idle.append(f"{flag} has no effect, as in the original evaluator")
    return idle
