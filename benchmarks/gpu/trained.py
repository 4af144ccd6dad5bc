"""A row of our trainer: the run as a user starts it, read by its own log lines."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULT
from benchmarks.gpu.processes import follow, start
from benchmarks.gpu.rows import Row, Workplace

FIGURES = {
    "tokens_per_second": r"([\d.]+) tok/s",
    "step_seconds": r"([\d.]+) s/step",
    "peak_gib": r"peak ([\d.]+) GiB",
    "mfu": r"mfu ([\d.]+)%",
    "wait": r"wait ([\d.]+)%",
    "padding": r"pad ([\d.]+)%",
    "loss": r"loss ([\d.]+)",
}
"""As ``internvl_chat/train/callbacks.py`` writes them."""
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without it torch refuses deterministic matrix products."""
_STEP = re.compile(r"step (\d+)/\d+ ")
_PERCENT = ("mfu", "wait", "padding")


def read_step(line: str) -> dict[str, float] | None:
    """The figures of a step's line; None for any other line."""
    begun = _STEP.search(line)
    if begun is None:
        return None
    step: dict[str, float] = {"step": int(begun[1])}
    for name, pattern in FIGURES.items():
        found = re.search(pattern, line)
        if found:
            step[name] = float(found[1]) / (100 if name in _PERCENT else 1)
    return step if "tokens_per_second" in step else None


def summarize(
    steps: Sequence[dict[str, float]], *, skip: int, step_tokens: Sequence[int] = ()
) -> dict[str, Any]:
    """Figures over the steps after the first ``skip``.

    Args:
        steps: of the log.
        skip: first steps that do not count.
        step_tokens: tokens of each step where they are known: the log's seconds have two digits,
            its tokens a second have more.
    """
    counted = list(steps[skip:])
    if not counted:
        return {}
    seconds = []
    for number, step in enumerate(counted, skip):
        known = step_tokens[number] if number < len(step_tokens) else None
        exact = known / step["tokens_per_second"] if known else step["step_seconds"]
        seconds.append(exact)
    tokens = [s["tokens_per_second"] * t for s, t in zip(counted, seconds, strict=True)]
    total = sum(seconds)
    figures: dict[str, Any] = {
        "tokens_per_second": sum(tokens) / total,
        "step_seconds": statistics.median(seconds),
        "all_step_seconds": [round(second, 4) for second in seconds],
        "peak_gib": max(step.get("peak_gib", 0.0) for step in counted),
        "losses": [step.get("loss") for step in steps],
    }
    for name in ("mfu", "wait", "padding"):
        if all(name in step for step in counted):
            shares = [step[name] * t for step, t in zip(counted, seconds, strict=True)]
            figures[name] = sum(shares) / total
    return figures


def start_trainer(
    row: Row,
    place: Workplace,
    *,
    folder: Path,
    num_steps: int,
    profile: bool,
    extra: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start a row's process, which waits for its turn if it is the only one of its row."""
    words = _command(row, place, folder, profile, num_steps)
    words += place.arguments(row, output_dir_of(row, folder), extra)
    variables = DETERMINISTIC if row.deterministic else {}
    return start(words, waits=place.num_gpus == 1, variables=variables)


def output_dir_of(row: Row, folder: Path) -> Path:
    """Where the run of a row writes."""
    return folder / f"run-{row.name}"


def follow_trainer(
    row: Row,
    child: subprocess.Popen[str],
    *,
    folder: Path,
    num_steps: int,
    skip: int,
    limit_seconds: float,
    profile: bool,
    step_tokens: Sequence[int] = (),
) -> dict[str, Any]:
    """Train until ``num_steps`` steps are logged, then end the run, whose save is no step.

    Raises:
        ChildError: the run failed; the message ends with its output.
    """
    steps: list[dict[str, float]] = []
    traced: list[dict[str, Any]] = []

    def is_done(line: str) -> bool:
        if line.startswith(RESULT):
            traced.append(json.loads(line[len(RESULT) :])["profile"])
        step = read_step(line)
        if step is not None and len(steps) < num_steps:
            steps.append(step)
        return len(steps) == num_steps and (bool(traced) or not profile)

    log_path = folder / f"{row.name}.log"
    ended = follow(child, log_path=log_path, limit_seconds=limit_seconds, is_done=is_done)
    shutil.rmtree(output_dir_of(row, folder), ignore_errors=True)
    figures = summarize(steps, skip=skip, step_tokens=step_tokens)
    note = "" if ended == "done" else f"cut after {len(steps)} steps"
    return {
        "row": row.name,
        **figures,
        "profile": traced[0] if traced else None,
        "note": note if figures else f"no step counted ({len(steps)} done): {log_path}",
    }


def _command(row: Row, place: Workplace, folder: Path, profile: bool, num_steps: int) -> list[str]:
    program = ["-m", "benchmarks.gpu.turn"]
    if profile:
        spec = folder / f"{row.name}-trace.json"
        values = {"first_step": num_steps, "accumulation": place.accumulation(row)}
        spec.write_text(json.dumps({**values, "on_gpu": place.on_gpu}), "utf-8")
        program = ["-m", "benchmarks.gpu.tracing", str(spec)]
    if place.num_gpus == 1:
        return program
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={place.num_gpus}", *program]
