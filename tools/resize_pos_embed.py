"""Lay position embeddings out for another image size: `internvl-chat resize-pos-embed`.

Example: python tools/resize_pos_embed.py CHECKPOINT OUTPUT_DIR 448
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["resize-pos-embed", *sys.argv[1:]]))
