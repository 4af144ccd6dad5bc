"""What a process owes its launcher when it ends badly: a message, an exit code.

torchrun knows no exit codes but 0 and 1 and ends with a traceback of its own; srun returns the
highest code of all tasks. Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

SAVED = 99
"""Exit code of a training that has saved a checkpoint because a signal ended it."""

STATUS_FILE = "EVAL_STATUS_FILE"
"""Environment, of ``evaluate.sh``: where rank 0 leaves the exit code, and ends with 0."""
REPORT_FILE = "LAUNCH_REPORT"
"""Environment, of the recipes: where the first rank that fails leaves its exit code and message."""
STDERR_TO_STDOUT = "LAUNCH_JOIN_OUTPUT"
"""Environment, of the recipes: set, the ranks' errors go where their output goes, because the
launcher's own are kept apart."""
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


def leave_report(code: int, text: str) -> None:
    """Leave code and message for the recipe's script; only the first rank's count."""
    place = os.environ.get(REPORT_FILE, "")
    if not place:
        return
    try:
        with open(place, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{code}\n{text}\n")
    except OSError:  # another was first, or this node does not see the folder
        return


def leave_started() -> None:
    """Tell the recipe's script that signals are heard from now on."""
    place = os.environ.get(REPORT_FILE, "")
    if place:
        with suppress(OSError):  # this node does not see the folder
            Path(f"{place}.started").touch()


def meant_signal(number: int) -> int:
    """The signal that the recipe's script has got: srun passes on SIGUSR1 alone without killing."""
    place = os.environ.get(REPORT_FILE, "")
    if number != signal.SIGUSR1 or not place:
        return number
    try:
        return int(signal.Signals(int(Path(f"{place}.signal").read_text("utf-8"))))
    except (OSError, ValueError):
        return number


def join_output() -> None:
    """Send this process's errors where its output goes, if the recipe's script asks for it."""
    if os.environ.get(STDERR_TO_STDOUT, ""):
        sys.stderr.flush()
        os.dup2(1, 2)


def leave_at_once(code: int) -> NoReturn:
    """End the process; threads of a group left in the middle may abort Python's own way out."""
    for child in multiprocessing.active_children():
        child.terminate()
    for child in multiprocessing.active_children():
        child.join(1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
