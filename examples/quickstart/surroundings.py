"""Where and when a run was made: what one wants to know of a number a year later."""

from collections.abc import Mapping
from datetime import datetime


def hardware() -> str:
    """``AMD EPYC 9B14, 2 cores, 8 GiB of memory``; its GPUs the quickstart leaves alone."""
    from internvl_chat.machine.hardware import cpu_name, memory_gib, usable_cores  # imports torch

    cores, memory = usable_cores(), memory_gib()
    told = [cpu_name()]
    if cores:
        told.append(f"{cores} core{'s' * (cores != 1)}")
    if memory:
        told.append(f"{memory:.0f} GiB of memory")
    return ", ".join(told)


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
