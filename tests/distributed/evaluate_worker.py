"""Runs of ``internvl-chat eval run`` in forked processes: the libraries are imported once.

``python evaluate_worker.py CASES.json``: a list of ``{"folder", "ranks", "arguments", "kill_at"}``.
Each case runs in its folder; for every number n in ``kill_at`` a run is started first and all its
processes are killed once the part files hold n lines. Exit codes go to ``codes.json`` beside the
list.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from internvl_chat.cli import eval as _eval  # noqa: F401  imported before the first fork
from internvl_chat.cli import main
from internvl_chat.evaluation import opening, registry, runner  # noqa: F401


def start(case: dict[str, Any]) -> list[int]:
    """A process a rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(case["ranks"]):
        pid = os.fork()
        if pid == 0:
            os.chdir(case["folder"])
            os.makedirs("tmp", exist_ok=True)
            os.environ["TMPDIR"] = os.path.abspath("tmp")
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if case["ranks"] > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(case["ranks"]),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            os._exit(main(["eval", "run", *case["arguments"]]))
        pids.append(pid)
    return pids


def wait_for_lines(case: dict[str, Any], wanted: int, pid: int) -> None:
    """Until the part files hold so many lines, or the run has ended."""
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        parts = Path(case["folder"]).glob("results/*/*/parts/*.jsonl")
        if sum(part.read_bytes().count(b"\n") for part in parts) >= wanted:
            return
        time.sleep(0.005)
    raise AssertionError(f"{case['folder']}: ended before {wanted} answers")


def run(case: dict[str, Any]) -> list[int]:
    """Exit codes of the ranks of the last run."""
    for wanted in case["kill_at"]:
        pids = start(case)
        wait_for_lines(case, wanted, pids[0])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in start(case)]


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[1]).with_name("codes.json").write_text(json.dumps([run(case) for case in cases]))
