"""What a finished run says last: duration, losses, what was skipped, where the model is."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from internvl_chat.checkpoint.load import TRAINED_IN_4BIT
from internvl_chat.checkpoint.sources import CONFIG_NAME
from internvl_chat.data.bad_samples import JOURNAL
from internvl_chat.train.early_stopping import BestEvaluation

_COMMAND = "internvl-chat"


def last_words(
    state: Any,
    output_dir: Path,
    *,
    seconds: float,
    first_step: int,
    bad_samples: Mapping[str, int],
    is_best: bool,
    best: BestEvaluation | None = None,
    stopped_early: str | None = None,
) -> list[str]:
    """The summary of a finished run, a line each.

    Args:
        state: transformers' ``TrainerState`` at the end.
        output_dir: where the model is.
        seconds: that this start of the run took for training.
        first_step: steps that were done before it.
        bad_samples: skipped records by dataset.
        is_best: the model is that of the best validation, not of the last step.
        best: the best evaluation.
        stopped_early: why the run ended before its last step.
    """
    steps, took = state.global_step, timedelta(seconds=round(seconds))
    here = f", {steps - first_step} of them" if first_step else ""
    lines = [f"finished: {steps} steps{here} in {took}"]
    if stopped_early is not None:
        lines.append(stopped_early)
    losses = _logged(state, "loss")
    if losses:
        first = f" (first {losses[0]:.4f})" if len(losses) > 1 else ""
        lines.append(f"loss: {losses[-1]:.4f}{first}")
    validation = [entry for entry in state.log_history if "eval_loss" in entry]
    if validation:
        lines.append(f"validation loss: {_validation(validation[-1])}")
    if best is not None and len(validation) > 1:
        lines.append(f"best validation: {best}")
    told = ", ".join(f"{name} {count}" for name, count in bad_samples.items())
    where = f" (why: {output_dir / JOURNAL})" if told else ""
    lines.append(f"skipped records: {told or 'none'}{where}")
    lines.append(f"model: {_model(state, output_dir, is_best=is_best)}")
    lines.append(f"talk to it: {chat_command(output_dir)}")
    return lines


def _logged(state: Any, name: str) -> list[float]:
    return [entry[name] for entry in state.log_history if name in entry]


def _validation(entry: Mapping[str, float]) -> str:
    """Of all records, and of each dataset where there are several."""
    datasets = {
        name.removeprefix("eval_loss/"): value
        for name, value in entry.items()
        if name.startswith("eval_loss/")
    }
    text = f"{entry['eval_loss']:.4f} at step {entry.get('step')}"
    if len(datasets) > 1:
        text += " (" + ", ".join(f"{name} {value:.4f}" for name, value in datasets.items()) + ")"
    return text


def _model(state: Any, output_dir: Path, *, is_best: bool) -> str:
    is_adapter = (output_dir / "adapter_config.json").is_file()
    text = f"{output_dir}{' (an adapter; its base is named in it)' if is_adapter else ''}"
    if is_best and state.best_global_step:
        text += f", that of step {state.best_global_step}, which validated best"
    return text


def chat_command(output_dir: Path) -> str:
    """The command that opens a conversation with a model, as it can be typed in this shell.

    Args:
        output_dir: a checkpoint, whole or an adapter.
    """
    bits = " --load-in-4bit" if _was_in_4bit(output_dir) else ""
    return f"{_own_command()} chat --model {shlex.quote(str(output_dir))}{bits}"


def _was_in_4bit(output_dir: Path) -> bool:
    """Whether the adapter was trained on a quantised base: it answers best on one."""
    try:
        return TRAINED_IN_4BIT in orjson.loads((output_dir / CONFIG_NAME).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False


def _own_command() -> str:
    """``internvl-chat`` where the shell finds this environment's, else how to reach it."""
    beside = Path(sys.executable).parent / _COMMAND
    found = shutil.which(_COMMAND)
    if found is not None and Path(found).parent.resolve() == beside.parent.resolve():
        return _COMMAND
    if beside.is_file():
        return shlex.quote(str(beside))
    return f"{shlex.quote(sys.executable)} -m internvl_chat"
