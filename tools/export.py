"""Write a checkpoint in another layout, dtype or file size: `internvl-chat export`.

Example: python tools/export.py CHECKPOINT OUTPUT_DIR --layout native
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
