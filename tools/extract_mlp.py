"""Take the projector out of a checkpoint: `internvl-chat extract mlp`.

Example: python tools/extract_mlp.py CHECKPOINT mlp.safetensors
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("extract", "mlp"))
