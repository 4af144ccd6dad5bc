"""Which files of the repository a wheel holds beside the code, and ``recipes`` writes.

In the repository they stand where people look for them (``shell/``, ``examples/``), once.
``setup.py`` runs this file by its path and copies them into the wheel, so it imports nothing but
the standard library.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PACKED: Final = "_resources"
"""Folder of the package that holds them in a wheel."""
SHIPPED: Final = (
    *("shell/internvl1.2/", "shell/lib/", "shell/deepspeed/", "shell/data/"),
    *("examples/configs/", "examples/samples/"),
    *("evaluate.sh", "evalulate.sh", "run.py", "playground/README.md"),
    *("pretrained/README.md", "pretrained/internvl-chat-tiny/"),
)
"""Files, and folders with all in them."""
OF_A_CLONE: Final = frozenset(
    {"shell/lib/environment.sh", "examples/samples/__init__.py", "examples/samples/draw.py"}
)
"""What of those folders works in a clone only."""
_STRAY: Final = re.compile(r"(?:^|/)(?:__pycache__|\.[^/]*)(?:/|$)|\.py[cod]$|~$")


def shipped_files(root: Path) -> list[str]:
    """Paths below ``root``, a clone or a wheel's folder, in order; hidden files left out."""
    found: set[str] = set()
    for name in SHIPPED:
        place = root / name
        files = place.rglob("*") if name.endswith("/") else [place]
        found |= {one.relative_to(root).as_posix() for one in files if one.is_file()}
    return sorted(one for one in found - OF_A_CLONE if not _STRAY.search(one))
