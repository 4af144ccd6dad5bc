"""CPU, memory and GPUs without torch: what the system itself tells."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""How long a driver may take to answer."""


def hardware() -> dict[str, Any]:
    """CPU, memory and what the GPU's driver says; what cannot be found out is None."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "free_disk_gib": free_disk_gib(),
        "driver": driver(),
    }


def cpu_name() -> str:
    """As the kernel names it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model)\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """Those that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        return os.cpu_count()


def memory_gib() -> float | None:
    """Of the machine, or of the container where that has less."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max", or another system
        limit = found
    return round(min(found, limit) / 2**30, 1)


def free_disk_gib() -> float | None:
    """Where the user stands."""
    try:
        return round(shutil.disk_usage(".").free / 2**30, 1)
    except OSError:
        return None


def driver() -> str | None:
    """Version of the GPU's driver; None where there is none to ask."""
    told = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return told.splitlines()[0].strip() if told else None


def gpus_by_driver() -> list[dict[str, Any]]:
    """The GPUs as the driver lists them, for where torch cannot."""
    fields = "name,memory.total,compute_cap"
    told = ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    found = []
    for line in (told or "").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdigit():
            memory = round(int(parts[1]) / 1024, 1)
            found.append({"name": parts[0], "memory_gib": memory, "compute_capability": parts[2]})
    return found


def ask(*command: str) -> str | None:
    """What a program prints; None where it is not there, fails or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 and done.stdout.strip() else None
