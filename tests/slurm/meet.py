"""Runs in place of the trainer (TRAINER=…): the ranks meet and add their numbers, or one crashes.

MEET_CRASH=kill|exit makes rank 1 die while the others wait for it; MEET_SECONDS keeps the ranks
together for a while. One line of JSON per rank goes to the log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from internvl_chat.train.distributed import init_distributed, shut_down


def main() -> None:
    started = time.time()
    state = init_distributed(timeout_seconds=60, use_cpu=True)
    total = torch.tensor([state.rank])
    dist.all_reduce(total)
    if state.rank == 1 and os.environ.get("MEET_CRASH") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if state.rank == 1 and os.environ.get("MEET_CRASH") == "exit":
        shut_down()  # as the trainer does, or its threads may abort the process
        sys.stdout.flush()
        os._exit(5)
    if "MEET_CRASH" in os.environ:
        time.sleep(120)
    time.sleep(float(os.environ.get("MEET_SECONDS", "0")))
    dist.barrier()
    said = {
        "rank": state.rank,
        "local_rank": state.local_rank,
        "world_size": state.world_size,
        "launcher": state.launcher,
        "master": state.master,
        "node": os.environ.get("SLURMD_NODENAME"),
        "sum": int(total),
        "started": started,
        "ended": time.time(),
        "last_argument": sys.argv[-1],
    }
    sys.stdout.write(json.dumps(said) + "\n")  # one write: the ranks share the pipe
    sys.stdout.flush()
    shut_down()


if __name__ == "__main__":
    main()
