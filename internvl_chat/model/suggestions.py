""" "Did you mean": the known names closest to one that is not known.

This file travels inside checkpoints: standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def close_names(
    name: str, known: Iterable[str], *, limit: int = 1, cutoff: float = 0.6
) -> list[str]:
    """The closest of the known names, best first, upper and lower case alike.

    Args:
        name: what was given.
        known: what there is.
        limit: of how many are wanted.
        cutoff: similarity that is close enough, from 0 (anything) to 1 (equal).
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=limit, cutoff=cutoff)
    return [lowered[candidate] for candidate in close]


def suggest(
    name: str,
    known: Iterable[str],
    *,
    limit: int = 1,
    cutoff: float = 0.6,
    write: Callable[[str], str] = repr,
) -> str:
    """``"Did you mean 'a' or 'b'?"``, empty if nothing is close.

    Args:
        name, known, limit, cutoff: of :func:`close_names`.
        write: how a name is written; ``str`` leaves the quotes away.
    """
    close = close_names(name, known, limit=limit, cutoff=cutoff)
    return f"Did you mean {' or '.join(map(write, close))}?" if close else ""
