"""Write a checkpoint in another layout, dtype or file size: `internvl-chat export`.

Example: python tools/export.py CHECKPOINT OUTPUT_DIR --layout native
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("export"))
