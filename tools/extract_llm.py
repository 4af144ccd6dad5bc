"""Take the language model out of a checkpoint: `internvl-chat extract llm`.

Example: python tools/extract_llm.py CHECKPOINT OUTPUT_DIR
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("extract", "llm"))
