"""Where and when a run was made: what one wants to know of a number a year later."""

import os
import platform
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def processor(cpu_info: Path = _CPU_INFO) -> str:
    """Name of the CPU; where Linux does not tell it, its architecture."""
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware() -> str:
    """``AMD EPYC 9B14, 2 cores, 8 GB``: of this machine, whose GPUs the quickstart leaves alone."""
    import psutil

    cores = os.cpu_count() or 1
    gigabytes = psutil.virtual_memory().total / 1e9
    return f"{processor()}, {cores} core{'s' * (cores != 1)}, {gigabytes:.0f} GB of memory"


def commit(revision: str | None) -> str:
    """A revision in the length that people use, a changed working tree in words.

    >>> commit("0123456789abcdef+")
    'commit 0123456789 with changes'
    """
    if revision is None:
        return "no git repository"
    changes = " with changes" if revision.endswith("+") else ""
    return f"commit {revision.removesuffix('+')[:10]}{changes}"


def made_at(now: datetime) -> str:
    """``2026-11-27 01:05 UTC``, in the time zone of ``now``."""
    return now.strftime("%Y-%m-%d %H:%M %Z").strip()


def named_versions(versions: Mapping[str, str]) -> str:
    """``python 3.11.9, torch 2.13.0``."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
