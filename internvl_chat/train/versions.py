"""Which code a run is: versions of what decides the numbers, and the commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

VERSIONED = ("torch", "transformers", "accelerate", "deepspeed", "peft", "flash-attn")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in ("internvl-chat", *VERSIONED):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Commit of the code, with ``+`` if files differ from it; None outside a repository."""
    here = Path(__file__).parent

    def ask(*words: str) -> str | None:
        try:
            told = subprocess.run(
                ["git", "-C", str(here), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return told.stdout.strip() if told.returncode == 0 else None

    # An environment may lie inside the repository of something else.
    is_tracked = ask("ls-files", "--error-unmatch", Path(__file__).name) is not None
    revision = ask("rev-parse", "HEAD") if is_tracked else None
    changed = ask("status", "--porcelain", "--untracked-files=no") if revision else None
    return f"{revision}+" if changed else revision
