"""Ask models the data sets of VLMEvalKit, with its command line.

``torchrun --nproc-per-node=8 run.py --data MMStar --model InternVL-Chat-V1-2 --verbose``, or
``python run.py …`` for one process. A model is a checkpoint's path, or a name in ``pretrained/``;
TSV files are read from ``$LMUData`` or ``~/LMUData``, nothing is downloaded. Results are
``{work-dir}/{model}/{model}_{data}.xlsx`` and, for resuming, ``{work-dir}/{model}/{data}/``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from internvl_chat.cli.run import main

if __name__ == "__main__":
    sys.exit(main(env_file=Path(__file__).with_name(".env")))
