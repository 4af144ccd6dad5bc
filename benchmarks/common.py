"""What every benchmark shares: one process per measurement, peak memory, a table, the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = "RESULT "
"""Begins the line that hands a child's figures to its parent."""


def python_path() -> str:
    """PYTHONPATH of a child: this package, and behind it what this process was given."""
    given = os.environ.get("PYTHONPATH")
    return str(ROOT) + (f"{os.pathsep}{given}" if given else "")


def peak_rss_mb() -> float:
    """Highest resident set of this process so far, in MB (10^6 bytes), imports included.

    Not ``ru_maxrss``, which starts from what the parent had when it forked.
    """
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no VmHWM in /proc/self/status")


def report(result: dict[str, Any]) -> None:
    """Hand ``result`` from a child process to :func:`run_child`."""
    print(RESULT + json.dumps(result), flush=True)


def run_child(
    script: Path, arguments: Sequence[str], *, threads: int, log_path: Path
) -> dict[str, Any]:
    """Run ``script`` in a fresh process and return what it handed to :func:`report`.

    Raises:
        RuntimeError: the process failed or reported nothing; the message ends with its output.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": python_path(),
    }
    with log_path.open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=ROOT,
        )
    output = log_path.read_text("utf-8", errors="replace")
    results = [line for line in output.splitlines() if line.startswith(RESULT)]
    if done.returncode or not results:
        raise RuntimeError(f"{script.name} {' '.join(arguments)} failed:\n{output[-3000:]}")
    return json.loads(results[-1][len(RESULT) :])


def median_and_all(values: Sequence[float], digits: int = 0) -> str:
    """``352 (356, 366, 348)``."""
    every = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.median(values):.{digits}f} ({every})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """One line about the computer and the libraries, for the head of a result."""
    import torch
    import transformers

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
