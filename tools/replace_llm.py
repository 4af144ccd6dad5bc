"""Put another language model behind a vision tower: `internvl-chat replace-llm`.

Example: python tools/replace_llm.py CHECKPOINT LLM OUTPUT_DIR --template smollm2 --new-mlp
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["replace-llm", *sys.argv[1:]]))
