"""The verbs of ``internvl-chat``, a thin module each; they import what they need when they run.

Their table, the exit codes and the entry point are in ``internvl_chat_command.py``, outside the
package.
"""

from __future__ import annotations

from internvl_chat_command import main

__all__ = ["main"]
