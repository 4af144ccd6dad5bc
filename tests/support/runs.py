"""Trainings that the tests of a module share, as a table; only what the selected tests read runs.

Starting torch in two processes costs more than a tiny training, so a module's runs go through one
set of processes. A module declares them as ``RUNS`` and ``DATASETS``. Each test names what it
reads: ``@pytest.mark.runs("stage0", "stage{stage}")``, where ``{stage}`` is one of its parameters.
The fixture ``trained`` of ``tests/distributed/conftest.py`` trains the union over the selected
tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import (
    run_cases,
    train_arguments,
    write_dataset,
    write_tiny_chat_model,
)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Arguments of :func:`tests.support.training.write_dataset`."""

    kinds: tuple[str, ...]
    seed: int = 0


@dataclass(frozen=True)
class Copy:
    """Before the run: a folder of another run, ``RUN/…``, becomes ``target`` in its own."""

    source: str
    target: str


@dataclass(frozen=True)
class Damage:
    """Before the run: a file in its own folder loses its last byte, as in a crash."""

    file: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training; what it leaves lies in the folder of its name."""

    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    eval_dataset: str | None = None
    processes: int = 2
    before: tuple[Copy | Damage, ...] = ()
    times: int = 1
    """How often the same command is given."""

    @property
    def sources(self) -> list[str]:
        """Names of the runs that this one copies from."""
        return [step.source.split("/")[0] for step in self.before if isinstance(step, Copy)]


def declared(item: pytest.Item) -> list[str]:
    """Names of the runs that a test says it reads."""
    callspec = getattr(item, "callspec", None)  # of a parametrised test alone
    params = {} if callspec is None else callspec.params
    return [name.format(**params) for mark in item.iter_markers("runs") for name in mark.args]


def with_sources(names: Iterable[str], runs: Mapping[str, Run]) -> list[str]:
    """The names and all that they copy from, in the order of the table.

    Raises:
        KeyError: a name is not in the table.
    """
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += runs[name].sources
    return [name for name in runs if name in wanted]


def train(
    root: Path, names: Iterable[str], runs: Mapping[str, Run], datasets: Mapping[str, Dataset]
) -> None:
    """Train the runs of these names into ``root/NAME``, from the model in ``root/model``."""
    model = write_tiny_chat_model(root / "model")
    metas = {
        name: write_dataset(root / "data", dataset.kinds, name=name, seed=dataset.seed)
        for name, dataset in datasets.items()
    }
    cases: dict[int, list[list[str]]] = {}
    for name in with_sources(names, runs):
        run = runs[name]
        cases.setdefault(run.processes, []).extend(_cases(root, name, run, model, metas))
    for processes in sorted(cases):
        run_cases(root, cases[processes], processes=processes)


def _cases(
    root: Path, name: str, run: Run, model: Path, metas: Mapping[str, Path]
) -> list[list[str]]:
    own = root / name
    cases = []
    for step in run.before:
        if isinstance(step, Copy):
            cases.append(["copy", str(root / step.source), str(own / step.target)])
        else:
            cases.append(["damage", str(own / step.file)])
    options = dict(run.options)
    if run.eval_dataset is not None:
        options["eval_meta_path"] = metas[run.eval_dataset]
    command = train_arguments(model, metas[run.dataset], own, **options)
    return cases + [command] * run.times
