"""Put another language model behind a vision tower: `internvl-chat replace-llm`.

Example: python tools/replace_llm.py CHECKPOINT LLM OUTPUT_DIR --template smollm2 --new-mlp
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("replace-llm"))
