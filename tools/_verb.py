"""What the scripts of this folder share: a verb of the repository's own ``internvl-chat``."""

from __future__ import annotations

import sys
from pathlib import Path


def run_verb(*words: str) -> int:
    """Run ``internvl-chat WORDS`` with the script's own arguments; returns the exit code.

    Works from any folder and without an installation.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from internvl_chat.cli import main

    return main([*words, *sys.argv[1:]])
