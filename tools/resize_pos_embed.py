"""Lay position embeddings out for another image size: `internvl-chat resize-pos-embed`.

Example: python tools/resize_pos_embed.py CHECKPOINT OUTPUT_DIR 448
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("resize-pos-embed"))
