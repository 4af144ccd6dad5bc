"""Options by which ``internvl-chat eval`` takes own records in place of a task's id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvl_chat.cli.completion import own_metrics
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.evaluation.task import Rules, TaskSpec

OwnJsonl = Annotated[
    Path | None,
    typer.Option("--jsonl", metavar="FILE", help="Own records, in the format of training."),
]
OwnMeta = Annotated[
    Path | None,
    typer.Option("--meta", metavar="FILE", help="The datasets of a meta JSON, told apart."),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        "--held-out",
        metavar="RUN",
        help="Of --meta only what that run's --val_split held out: its folder, or held_out.jsonl.",
    ),
]
OwnRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Of image paths; by default --jsonl's folder. Without own records: mme's lists.",
    ),
]
OwnMetrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Of own records, repeatable: exact (by default), relaxed, anls, vqa, iou, choice, "
        "bleu, rouge, judge.",
        autocompletion=own_metrics,
    ),
]
OwnField = Annotated[
    str, typer.Option("--by", metavar="FIELD", help="Field of own records to tell results by.")
]


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """What these options say."""

    jsonl: Path | None
    meta: Path | None
    held_out: Path | None
    root: Path | None
    metrics: Sequence[str] | None
    by: str

    @property
    def is_given(self) -> bool:
        """Whether records are named."""
        return self.jsonl is not None or self.meta is not None

    def task(self) -> TaskSpec | None:
        """The benchmark of own records; None where none are named.

        Raises:
            ConfigError: options that exclude each other or have no effect, or those of
                :func:`task_of_records`.
        """
        from internvl_chat.evaluation.tasks.own import task_of_records

        if self.jsonl is not None and self.meta is not None:
            raise ConfigError("exclude each other", where="--jsonl and --meta", fix="Give one.")
        path = self.meta if self.jsonl is None else self.jsonl
        if path is None:
            given = {
                "--held-out": self.held_out,
                "--root": self.root,
                "--metric": self.metrics,
                "--by": self.by,
            }
            idle = [name for name, value in given.items() if value]
            if idle:
                raise ConfigError(
                    "is of own records, and there are none",
                    where=" and ".join(idle),
                    fix="Give --jsonl or --meta.",
                )
            return None
        return task_of_records(
            path,
            root=self.root,
            metrics=self.metrics or ("exact",),
            meta=self.meta is not None,
            held_out=self.held_out,
            by=self.by,
        )


def tasks_of(
    names: Sequence[str] | None,
    own: OwnData,
    *,
    reasons: bool = False,
    rules: Rules | None = None,
) -> list[TaskSpec]:
    """Tasks by their ids and the one of own records.

    Args:
        names: ids.
        own: records; without any, ``--root`` is where MME's question lists are.
        reasons: as ``--cot`` asks them.
        rules: that the user chose.

    Raises:
        ConfigError: there is none, or an id is unknown.
    """
    from internvl_chat.evaluation.registry import find_tasks
    from internvl_chat.evaluation.tasks.mme import with_lists
    from internvl_chat.evaluation.variants import as_reasoned

    found = find_tasks(names or ())
    of_lists = [task for task in found if "--root" in task.original_flags]
    lists = own.root if of_lists and not own.is_given else None
    mine = (own if lists is None else replace(own, root=None)).task()
    if not found and mine is None:
        raise ConfigError(
            "nothing to ask", where="TASK", fix="Name a task (eval list), or give --jsonl FILE."
        )
    if lists is not None:
        found = [with_lists(task, lists) if task in of_lists else task for task in found]
    found += [] if mine is None else [mine]
    return as_reasoned(found, rules) if reasons else found
