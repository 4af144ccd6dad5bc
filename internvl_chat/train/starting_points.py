"""Models on the hub that a run starts from: of which commit, and who of the ranks fetches them.

A name that says no commit gets the one that its branch has now, on rank 0 for all. A run in a
folder where it was begun with the same name keeps the commit of then, which ``arguments.json``
says: a branch that moved upstream changes no run that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from internvl_chat.checkpoint.hub import local_file, local_model
from internvl_chat.checkpoint.hub_commits import pinned_before, pinned_model
from internvl_chat.checkpoint.hub_names import hub_name, portable_name
from internvl_chat.errors import CheckpointError
from internvl_chat.train.distributed import DistributedState, ahead_on_each_node, from_rank_zero
from internvl_chat.train.parsing import is_true, peek
from internvl_chat.train.record import MODEL_PATHS, load_record

_FILES: Final = ("mlp_path",)
"""Flags that name one file."""


def find_models(
    arguments: Sequence[str], state: DistributedState, *, folder: str
) -> dict[str, str]:
    """Fetch what the checks of a run read: configurations, tokenizers, a projector.

    Args:
        arguments: of the command line.
        state: of this process.
        folder: OUTPUT_DIR; empty if none is named.

    Returns:
        Flag -> where its model lies, for those that name one on the hub.

    Raises:
        CheckpointError: a model is not to be had.
    """
    given = {flag: peek(arguments, flag, "") for flag in MODEL_PATHS}
    given = {flag: name for flag, name in given.items() if name}
    pinned = from_rank_zero(
        state,
        lambda: {flag: _pinned(flag, name, arguments, folder) for flag, name in given.items()},
    )
    if not any(map(_may_be_fetched, pinned.values())):
        return {}
    ahead_on_each_node(state, lambda: _settings_of(pinned), name="settings_fetched")
    places = _settings_of(pinned)
    return {flag: place for flag, place in places.items() if place != given[flag]}


def fetch_weights(
    arguments: Sequence[str], models: dict[str, str], state: DistributedState
) -> None:
    """Fetch the weights of what :func:`find_models` found, once on each machine.

    Raises:
        CheckpointError: the disk is full, or the hub cannot be reached.
    """
    given = {flag: peek(arguments, flag, "") for flag in MODEL_PATHS if flag not in _FILES}
    names = {flag: portable_name(models.get(flag, name)) for flag, name in given.items() if name}
    if not any(map(_may_be_fetched, names.values())):
        return

    def fetch() -> None:
        for flag, name in names.items():
            _told_of(flag, partial(local_model, name))

    ahead_on_each_node(state, fetch, name="weights_fetched")


def _may_be_fetched(name: str) -> bool:
    """A model on the hub, or an adapter, whose base may be one."""
    return hub_name(name) is not None or (Path(name) / "adapter_config.json").is_file()


def _settings_of(names: dict[str, str]) -> dict[str, str]:
    """Flag -> directory, or file."""
    return {
        flag: _told_of(
            flag,
            partial(local_file, name) if flag in _FILES else partial(local_model, name, "settings"),
        )
        for flag, name in names.items()
    }


def _told_of(flag: str, find: Callable[[], str]) -> str:
    """Raises:
    CheckpointError: ``find``'s, which names the flag, too.
    """
    try:
        return find()
    except CheckpointError as err:
        where = f"--{flag} {err.where}" if err.where else f"--{flag}"
        raise type(err)(err.problem, where=where, fix=err.fix) from err


def _pinned(flag: str, name: str, arguments: Sequence[str], folder: str) -> str:
    """The name with its commit; a path as it is."""
    earlier = pinned_before(name, _recorded(flag, name, arguments, folder))
    if earlier is not None:
        return earlier
    is_file = flag in _FILES
    return _told_of(
        flag, lambda: portable_name(local_file(name)) if is_file else pinned_model(name)
    )


def _recorded(flag: str, name: str, arguments: Sequence[str], output_dir: str) -> Iterator[object]:
    """What the name meant to the runs that this one goes on with."""
    asked = peek(arguments, "resume_from_checkpoint", "")
    folders = [Path(asked)] if asked and asked.lower() not in ("true", "false") else []
    if output_dir and not is_true(peek(arguments, "overwrite_output_dir", "false")):
        folders.append(Path(output_dir))
    for folder in folders:
        record = load_record(folder) or {}
        if record.get("given", {}).get(flag) == name:
            yield record["arguments"].get(flag)
