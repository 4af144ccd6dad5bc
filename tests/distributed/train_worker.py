"""Several fine-tuning runs in one set of processes: starting torch costs more than the runs.

``torchrun … train_worker.py cases.json``: a list of argument lists, trained one after the other;
``["copy", FROM, TO]`` copies a directory in between and ``["damage", FILE]`` cuts a file short.
Results are what a run leaves in its OUTPUT_DIR. A case that ends in a user's error leaves it in
OUTPUT_DIR/error.txt.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from pathlib import Path

import torch.distributed as dist
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from internvl_chat.errors import UserError
from internvl_chat.train.distributed import DistributedState, init_distributed, shut_down
from internvl_chat.train.finetune import run
from internvl_chat.train.parsing import parse
from internvl_chat.train.reports import set_up_logging
from internvl_chat.train.signals import EndingSignals
from internvl_chat.train.status import RunStatus


def run_case(argv: list[str], state: DistributedState) -> None:
    """One run in the process group that is already there."""
    unset_hf_deepspeed_config()  # of the case before; a run of its own starts without
    args = parse(argv, device=state.device)
    try:
        # Status and signals belong to the entry point, one for each process.
        run(args, state, RunStatus("", rank=state.rank), EndingSignals(lambda number: None))
    except UserError as err:
        if state.is_main:
            path = Path(args.train.output_dir) / "error.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{err.exit_code} {err}")
    del args
    gc.collect()


def prepare(words: list[str], state: DistributedState) -> None:
    """What a user or a crash does to the files between two runs."""
    if state.is_main:
        if words[0] == "copy":
            shutil.copytree(words[1], words[2])
        else:
            path = Path(words[1])
            path.write_bytes(path.read_bytes()[:-1])
    if state.world_size > 1:
        dist.barrier()


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    deepspeed = any("--deepspeed" in argv for argv in cases)
    state = init_distributed(timeout_seconds=120, deepspeed=deepspeed)
    set_up_logging(state)
    for argv in cases:
        (prepare if argv[0] in ("copy", "damage") else run_case)(argv, state)
    shut_down()


if __name__ == "__main__":
    main()
