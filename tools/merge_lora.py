"""Merge a LoRA adapter into its base model: `internvl-chat merge-lora`.

Example: python tools/merge_lora.py work_dirs/my_lora work_dirs/my_merged
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["merge-lora", *sys.argv[1:]]))
