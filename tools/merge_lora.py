"""Merge a LoRA adapter into its base model: `internvl-chat merge-lora`.

Example: python tools/merge_lora.py work_dirs/my_lora work_dirs/my_merged
"""

import sys

from _verb import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("merge-lora"))
