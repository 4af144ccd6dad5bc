"""Turn a JSON array of records into JSONL: `internvl-chat json2jsonl`.

Example: python tools/json2jsonl.py records.json
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("json2jsonl"))
