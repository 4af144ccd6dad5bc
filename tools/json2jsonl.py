"""Turn a JSON array of records into JSONL: `internvl-chat json2jsonl`.

Example: python tools/json2jsonl.py records.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from internvl_chat.cli import main

if __name__ == "__main__":
    sys.exit(main(["json2jsonl", *sys.argv[1:]]))
