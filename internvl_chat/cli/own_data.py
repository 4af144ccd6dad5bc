"""Options by which ``internvl-chat eval`` takes own records in place of a task's id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.evaluation.task import TaskSpec

OwnJsonl = Annotated[
    Path | None,
    typer.Option("--jsonl", metavar="FILE", help="Own records, in the format of training."),
]
OwnMeta = Annotated[
    Path | None,
    typer.Option("--meta", metavar="FILE", help="The datasets of a meta JSON, told apart."),
]
OwnRoot = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Of image paths; by default --jsonl's folder."),
]
OwnMetrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Of own records, repeatable: exact (by default), relaxed, anls, vqa, iou, choice, "
        "bleu, rouge, judge.",
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
    root: Path | None
    metrics: Sequence[str] | None
    by: str

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
            given = {"--root": self.root, "--metric": self.metrics, "--by": self.by}
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
            by=self.by,
        )


def tasks_of(names: Sequence[str] | None, own: OwnData) -> list[TaskSpec]:
    """Tasks by their ids and the one of own records.

    Raises:
        ConfigError: there is none, or an id is unknown.
    """
    from internvl_chat.evaluation.registry import find_tasks

    mine = own.task()
    if not names and mine is None:
        raise ConfigError(
            "nothing to ask", where="TASK", fix="Name a task (eval list), or give --jsonl FILE."
        )
    return [*find_tasks(names or ()), *([] if mine is None else [mine])]
