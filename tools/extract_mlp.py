"""Take the projector out of a checkpoint: `internvl-chat extract mlp`.

Example: python tools/extract_mlp.py CHECKPOINT mlp.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", "mlp", *sys.argv[1:]]))
