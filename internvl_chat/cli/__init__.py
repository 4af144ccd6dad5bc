"""The verbs of ``internvl-chat``, a thin module each; they import what they need when they run.

Their table, the exit codes and the entry point are in ``command.py``.
"""

from __future__ import annotations

from internvl_chat.cli.command import main

__all__ = ["main"]
