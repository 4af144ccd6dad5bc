"""What a process owes its launcher when it ends badly."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

STATUS_FILE = "EVAL_STATUS_FILE"
"""Environment: where rank 0 leaves the exit code, torchrun having none but 0 and 1."""
_REASON_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment, of torchrun: what it shows last, in place of a hint on tracebacks."""


def first_guess_of_rank() -> int:
    """The rank as far as the launcher's variables tell, before the processes have met."""
    text = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(text) if text.isdigit() else 0


def is_first_process() -> bool:
    """Whether this is the process that speaks, as far as the launcher's variables tell."""
    return first_guess_of_rank() == 0


def leave_reason(text: str) -> None:
    """Let torchrun end its report with the reason; nothing without torchrun.

    torchrun turns every exit code into 1 and prints its own traceback after all that the processes
    said. The last thing in it is the message of the process that failed first.
    """
    place = os.environ.get(_REASON_FILE, "")
    if place:
        told = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(place).write_text(json.dumps({"message": told}), encoding="utf-8")


def leave_status(code: int, *, world_size: int, is_main: bool) -> int:
    """The exit code of this rank; where ``evaluate.sh`` reads rank 0's, torchrun gets a zero."""
    place = os.environ.get(STATUS_FILE, "")
    if world_size == 1 or not place:
        return code
    if is_main:
        Path(place).write_text(str(code), encoding="utf-8")
    return 0
