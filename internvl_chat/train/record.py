"""``arguments.json``: what a run was told and what those files held, for people and for reruns.

The file at OUTPUT_DIR's root is that of the run at work there last; each checkpoint holds that of
the run that wrote it. It is written when training begins, so that a run that is refused leaves it
as it was. ``train/rerun.py`` compares.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from internvl_chat.checkpoint.adapters import find_adapter_weights
from internvl_chat.checkpoint.hub import cached_model
from internvl_chat.checkpoint.hub_names import named
from internvl_chat.checkpoint.identity import model_identity
from internvl_chat.checkpoint.sources import ADAPTER_CONFIG_NAME, read_json
from internvl_chat.checkpoint.tensor_files import open_weights
from internvl_chat.data.identity import data_identity
from internvl_chat.errors import CheckpointError, DatasetError
from internvl_chat.files import write_json
from internvl_chat.train.arguments import DataArguments, ModelArguments
from internvl_chat.train.checkpoints import ARGUMENTS
from internvl_chat.train.parsing import RunArguments
from internvl_chat.train.rerun import Comparison, RunRecord, compare
from internvl_chat.train.trainer_arguments import TrainArguments
from internvl_chat.train.versions import git_revision, versions

logger = logging.getLogger(__name__)

RESULTS = "train_results.json"
PLANNED_STEPS = "planned_steps"
"""Key of it: more than ``global_step`` where the run stopped early."""
MODEL_PATHS = ("model_name_or_path", "vision_path", "llm_path", "mlp_path")
META_PATHS = ("meta_path", "eval_meta_path")
OF_FINISHED_MODEL = "of_finished_model"
"""Key of what the file said before, while the model at the root is still the former run's."""
EARLIER = "earlier"
"""Key of what the run was told up to ``from_step``, where it was told otherwise."""

TRACKERS = "trackers"
"""Key of what trackers call this training's run, by tracker, to go on with; if there are any."""

_MODEL_FILES = ("config.json", ADAPTER_CONFIG_NAME)


def new_record(args: RunArguments, *, world_size: int, global_batch_size: int) -> dict[str, Any]:
    """What this run's ``arguments.json`` will say, but for where it goes on from.

    Raises:
        DatasetError: an annotation file cannot be read.
    """
    record = {
        "arguments": as_dict(args),
        "given": args.given,
        "world_size": world_size,
        "global_batch_size": global_batch_size,
        "versions": versions(),
        "git_revision": git_revision(),
        "command": sys.argv,
        "contents": contents_of(as_dict(args), args.train.output_dir),
    }
    return json.loads(json.dumps(record, default=str))


def as_dict(args: RunArguments) -> dict[str, Any]:
    """All arguments by name; secrets blanked as transformers does, models of the hub by commit."""
    model = asdict(args.model)
    model |= {name: named(model[name]) for name in MODEL_PATHS}
    return {**model, **asdict(args.data), **args.train.to_dict()}


def contents_of(arguments: Mapping[str, Any], output_dir: str) -> dict[str, Any]:
    """What the files hold that arguments name, by argument; None where it cannot be told.

    Args:
        arguments: by name.
        output_dir: of the run; a model in it changes as the run ends, so it is left out.
    """
    found: dict[str, Any] = {}
    for name in MODEL_PATHS:
        path = cached_model(arguments[name]) if arguments.get(name) else None
        if path:
            is_own = os.path.realpath(path) == os.path.realpath(output_dir)
            found[name] = None if is_own else model_identity(path)
    for name in META_PATHS:
        if arguments.get(name):
            found[name] = data_identity(arguments[name])
    return found


def load_record(directory: Path) -> dict[str, Any] | None:
    """The content of a directory's ``arguments.json``; None without a readable one."""
    try:
        record = json.loads((directory / ARGUMENTS).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and parsed(record) is not None else None


def parsed(record: Mapping[str, Any] | None) -> RunRecord | None:
    """The part of a record that is compared; None if it is not of that form."""
    if record is None:
        return None
    parts = [record.get("arguments"), record.get("given", {}), record.get("contents", {})]
    batch = record.get("global_batch_size")
    dictionaries = [part for part in parts if isinstance(part, dict)]
    if len(dictionaries) < len(parts) or (batch is not None and type(batch) is not int):
        return None
    arguments, given, contents = dictionaries
    return RunRecord(arguments=arguments, given=given, global_batch_size=batch, contents=contents)


def record_of_finished_model(output_dir: Path) -> dict[str, Any] | None:
    """What the run was told that wrote the model at the root.

    Where the root's own record is lost, that of the checkpoint with the same steps tells it.
    """
    record = load_record(output_dir)
    if record is None:
        step = finished_step(output_dir)
        return None if step is None else load_record(output_dir / f"checkpoint-{step}")
    former = record.get(OF_FINISHED_MODEL)
    return former if isinstance(former, dict) and parsed(former) is not None else record


def finished_step(output_dir: Path) -> int | None:
    """How many steps the finished model at the root has behind it; None without a whole one."""
    try:
        results = json.loads((output_dir / RESULTS).read_text("utf-8"))
        step = results["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_whole = holds_model(output_dir) and damage_of_model(output_dir) is None
    return step if type(step) is int and is_whole else None


def holds_model(output_dir: Path) -> bool:
    """Whether a model or an adapter lies at the root."""
    return any((output_dir / name).is_file() for name in _MODEL_FILES)


def damage_of_model(output_dir: Path) -> str | None:
    """What is wrong with the model at the root, by its small files and the weights' headers.

    Returns:
        None if nothing is.
    """
    try:
        for name in _MODEL_FILES:
            if (output_dir / name).is_file():
                read_json(output_dir / name)
        if (output_dir / ADAPTER_CONFIG_NAME).is_file():
            open_weights(find_adapter_weights(output_dir))
        else:
            open_weights(output_dir)
    except CheckpointError as err:
        return f"{err.where}: {err.problem}"
    return None


def compared(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Comparison:
    """In what this run differs from the one of a record.

    The contents of files that an older record does not tell are read now, where they still are.

    Args:
        old: a record as :func:`load_record` gives it.
        new: this run's, as :func:`new_record` makes it.
    """
    now, then = parsed(new), parsed(old)
    assert now is not None, new
    if then is not None:
        missing = {name: path for name, path in then.arguments.items() if name in _NAMING}
        missing = {n: p for n, p in missing.items() if p and then.contents.get(n) is None}
        moved = {n: p for n, p in missing.items() if p != now.arguments.get(n)}
        there = {n: p for n, p in moved.items() if isinstance(p, str) and os.path.exists(p)}
        output_dir = str(now.arguments.get("output_dir"))
        then = RunRecord(
            arguments=then.arguments,
            given=then.given,
            global_batch_size=then.global_batch_size,
            contents={**then.contents, **_contents_if_whole(there, output_dir)},
        )
    return compare(then, now, _defaults())


def _contents_if_whole(arguments: Mapping[str, Any], output_dir: str) -> dict[str, Any]:
    """Of an earlier run's files, whose faults are none of this run's."""
    try:
        return contents_of(arguments, output_dir)
    except DatasetError:
        return {}


_NAMING = frozenset(MODEL_PATHS + META_PATHS)


def _defaults() -> dict[str, Any]:
    kinds = (ModelArguments, DataArguments, TrainArguments)
    return {one.name: one.default for kind in kinds for one in fields(kind)}


def continued(
    record: Mapping[str, Any], before: Mapping[str, Any] | None, step: int
) -> dict[str, Any]:
    """This run's record with what was told up to ``step``, where that was otherwise.

    Args:
        record: this run's.
        before: of the run that wrote the checkpoint; None if unknown.
        step: at which this run goes on; 0 starts anew.
    """
    found = {**record, "from_step": step, EARLIER: [], "tensorboard": None, "resumed_at": step}
    if before is None or parsed(before) is None or not step:
        return found
    earlier = before.get(EARLIER)
    found[EARLIER] = list(earlier) if isinstance(earlier, list) else []
    curve = before.get("tensorboard")
    found["tensorboard"] = curve if isinstance(curve, str) else None
    if isinstance(before.get(TRACKERS), dict):
        found[TRACKERS] = dict(before[TRACKERS])
    if compared(before, record).of("result", "rate", "length"):
        told = ("arguments", "given", "world_size", "global_batch_size", "command", "from_step")
        found[EARLIER].append({key: before.get(key) for key in told})
    else:
        found["from_step"] = before.get("from_step", 0)
    return found


def write_record(output_dir: Path, record: Mapping[str, Any]) -> None:
    """Write ``arguments.json`` as training begins, the finished model's kept in it."""
    former = record_of_finished_model(output_dir) if finished_step(output_dir) else None
    if former is not None:
        former = {key: value for key, value in former.items() if key != OF_FINISHED_MODEL}
        record = {**record, OF_FINISHED_MODEL: former}
    write_json(output_dir / ARGUMENTS, record)


def finish_record(output_dir: Path, record: Mapping[str, Any]) -> None:
    """Write ``arguments.json`` when the model at the root is this run's."""
    write_json(output_dir / ARGUMENTS, record)
