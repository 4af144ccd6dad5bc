"""Options of ``internvl-chat eval`` that single evaluators of the original have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.evaluation.settings import RunSettings
    from internvl_chat.evaluation.task import TaskSpec

Cot = Annotated[
    bool,
    typer.Option("--cot", help="Reasoning before the answer: scienceqa, pope; --rules later."),
]
Datasets = Annotated[
    str | None,
    typer.Option(metavar="KEYS", help="The original's names of data, in place of TASK: a,b."),
]
CheckpointFlag = Annotated[
    str | None, typer.Option("--checkpoint", help="In place of the argument CHECKPOINT.")
]
FewShot = Annotated[
    int | None, typer.Option(min=0, help="Of the VQA family; without effect, as in the original.")
]
Sample = Annotated[
    str | None,
    typer.Option(
        metavar="true|false", help="Sample the answers of mme; without effect on refcoco."
    ),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Sample among the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="... among the likeliest that make up p.")]

_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def truth_of(text: str | None) -> bool:
    """What the text after ``--sample`` means; the original takes any text for true.

    Raises:
        ConfigError: it is neither true nor false.
    """
    if text is None:
        return False
    if text.lower() not in _TRUTHS:
        raise ConfigError(f"is {text!r}", where="--sample", fix="Give true or false.")
    return _TRUTHS[text.lower()]


@dataclass(frozen=True, kw_only=True)
class FlagsOfOne:
    """Those flags that a user gave."""

    few_shot: int | None
    sample: str | None

    def notes(self, tasks: Sequence[TaskSpec], settings: RunSettings) -> list[str]:
        """A sentence for each flag that changes nothing in this run.

        Raises:
            ConfigError: a flag that none of the tasks has.
        """
        from internvl_chat.evaluation.registry import TASKS
        from internvl_chat.evaluation.variants import require_flags

        given = {"--few-shot": self.few_shot is not None, "--sample": self.sample is not None}
        flags = [name for name, is_given in given.items() if is_given]
        notes = require_flags(tasks, flags, TASKS.values())
        is_sampled = any(settings.generation_of(task, 1)["do_sample"] for task in tasks)
        limits = {"--top-k": settings.top_k, "--top-p": settings.top_p}
        idle = [name for name, value in limits.items() if value is not None and not is_sampled]
        return [*notes, *(f"{name} has no effect on greedy answers" for name in idle)]
