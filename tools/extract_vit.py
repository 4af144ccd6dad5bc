"""Take the vision tower out of a checkpoint: `internvl-chat extract vit`.

Example: python tools/extract_vit.py CHECKPOINT OUTPUT_DIR
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("extract", "vit"))
