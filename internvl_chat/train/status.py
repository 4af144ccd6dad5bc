"""``status.json``: what became of a run, true after every end.

Launchers mask exit codes, and a process that is killed says nothing. So rank 0 leaves in the file
who it is and, every half minute, that it is alive; whoever reads a file that says ``running`` asks
whether that process is (:func:`read_status`). Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from internvl_chat.errors import ConfigError
from internvl_chat.files import write_json
from internvl_chat.train.process_identity import ProcessIdentity

logger = logging.getLogger(__name__)

STATUS = "status.json"
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
"""Without a sign of life for so long, a process on another machine is taken for dead."""

_TIME = "%Y-%m-%dT%H:%M:%S%z"

Verdict = Literal["running", "complete", "failed", "interrupted", "saved"]
"""``saved``: ended by a signal after it wrote a checkpoint (``--enable_jit_checkpoint True``)."""

FORMER = "former"
"""Key of a file that says ``running``: the verdict that stands until the first step."""
LAST_START = "last_start"
"""Key of a finished run's file: how a later start ended that changed nothing."""


# ---- reading ------------------------------------------------------------------------------------


def load_status(output_dir: Path) -> dict[str, Any] | None:
    """The file as it is; None if there is none that can be read."""
    try:
        content = json.loads((output_dir / STATUS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_status(output_dir: Path, *, now: float | None = None) -> dict[str, Any] | None:
    """What became of the run, a process that died without a word included.

    Args:
        output_dir: of the run.
        now: seconds since 1970; the clock's if None.

    Returns:
        The file's content, ``running`` replaced where nobody runs: by ``interrupted`` with the
        reason as ``error``, or by the verdict of the finished run that the dead one had not
        touched. None without a readable file.
    """
    content = load_status(output_dir)
    if content is None or content.get("status") != "running":
        return content
    why = _why_dead(content, time.time() if now is None else now)
    if why is None:
        return content
    former = content.get(FORMER)
    ended = {"status": "interrupted", "exit_code": None, "error": why}
    if isinstance(former, dict):
        last = {**ended, "time": content.get("heartbeat", content.get("time"))}
        return {**former, LAST_START: last}
    return {**content, **ended}


def is_surely_running(output_dir: Path) -> ProcessIdentity | None:
    """The process of this machine, another than this one, that is at work in the folder."""
    content = load_status(output_dir)
    if content is None or content.get("status") != "running":
        return None
    process = ProcessIdentity.of(content)
    if process is None or process.pid == os.getpid() or not process.is_alive():
        return None
    return process


def _why_dead(content: Mapping[str, Any], now: float) -> str | None:
    """Why nobody is at work any more; None if somebody is, as far as one can tell."""
    process = ProcessIdentity.of(content)
    if process is None:  # written before the file told who writes it
        silent = now - _seconds_of(content.get("time"))
        return "no sign of life" if silent > STALE_SECONDS else None
    alive = process.is_alive()
    who = f"process {process.pid} on {process.host}"
    if alive is False:
        return f"{who} ended without a word (killed, out of memory, or the machine stopped)"
    silent = now - _seconds_of(content.get("heartbeat"))
    if alive is None and silent > STALE_SECONDS:
        return f"{who} has given no sign of life for {silent / 60:.0f} minutes"
    return None


def _seconds_of(text: object) -> float:
    """Of a time as :func:`_stamp` writes it; 0.0 for what is none."""
    try:
        return datetime.strptime(str(text), _TIME).timestamp()
    except ValueError:
        return 0.0


def _stamp(seconds: float) -> str:
    return time.strftime(_TIME, time.localtime(seconds))


# ---- writing ------------------------------------------------------------------------------------


def _holds_foreign_model(folder: Path) -> bool:
    """Whether a model lies there that no run of ours has begun."""
    ours = (STATUS, "arguments.json")
    if any(os.path.exists(folder / name) for name in ours):
        return False
    return any(os.path.isfile(folder / name) for name in ("config.json", "adapter_config.json"))


class RunStatus:
    """The file as one rank of a run writes it.

    Rank 0 writes it; another rank only where it failed alone and nobody has said so yet. A finished
    run's verdict outlives a start that changes nothing: what is refused, is complete already, or
    ends before the first step, is noted beside it. Of such a start nothing stays beside a model
    that is nobody's run.
    """

    def __init__(
        self, output_dir: str | Path, *, rank: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        """``output_dir`` may be empty, a file or no name at all: then nothing is written."""
        is_name = str(output_dir) and "\0" not in str(output_dir)
        self._folder = Path(output_dir) if is_name else None
        if self._folder is not None and os.path.isfile(self._folder):
            self._folder = None
        self.rank = rank
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._content: dict[str, Any] = {}
        self._former: dict[str, Any] | None = None
        self._has_trained = False
        self._has_said = False
        self._is_foreign = self._folder is not None and _holds_foreign_model(self._folder)
        self._ended = False

    def start(self) -> str | None:
        """Say ``running`` and go on saying so, until :meth:`end`.

        Returns:
            How the run before ended, if it did so without a word.

        Raises:
            ConfigError: another process of this machine is at work in the folder, or the folder
                cannot be written into.
        """
        if self._folder is None or self.rank != 0:
            return None
        other = is_surely_running(self._folder)
        if other is not None:
            self._ended = True  # the file is the other's
            raise ConfigError(
                f"{self._folder} is being written by another run, process {other.pid}",
                where="--output_dir",
                fix="Wait for it, end it, or give another OUTPUT_DIR.",
            )
        before, found = load_status(self._folder), read_status(self._folder)
        self._former = found if (found or {}).get("status") == "complete" else None
        now = _stamp(self._clock())
        self._content = {
            **_verdict("running", None, None, self.rank, now),
            **asdict(ProcessIdentity.current()),
            "started": now,
            "heartbeat": now,
            "step": None,
            "max_steps": None,
            "checkpoint": None,
        }
        try:
            self._write()
        except OSError as err:
            self._ended = True
            raise ConfigError(
                f"cannot write into {self._folder}: {err.strerror}",
                where="--output_dir",
                fix="Make it writable, make room, or give another OUTPUT_DIR.",
            ) from err
        threading.Thread(target=self._beat, name="status", daemon=True).start()
        killed = before and found and before.get("status") != found.get("status")
        return str(found.get("error")) if killed and found and not self._former else None

    def training(self, *, step: int, max_steps: int) -> None:
        """The first step begins: what a former run said of the folder no longer holds."""
        self._has_trained = True
        self.note(step=step, max_steps=max_steps)
        self._write_quietly()

    def note(self, **figures: Any) -> None:
        """Keep ``step``, ``max_steps`` or ``checkpoint`` for the next sign of life."""
        self._content.update(figures)

    @property
    def content(self) -> Mapping[str, Any]:
        """What was last written or will be next."""
        return self._content

    def end(
        self,
        status: Verdict,
        *,
        code: int | None = None,
        error: str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        """Leave the verdict; only the first one counts.

        Args:
            status: of the run.
            code: of the process.
            error: what went wrong.
            checkpoint: where to go on, if this run saved one.
        """
        assert status in get_args(Verdict), status
        self._stop.set()
        # A second thread that wants to end the process waits until the first has written.
        with self._lock:
            if self._ended or self._folder is None:
                return
            self._ended = True
            if checkpoint is not None:
                self.note(checkpoint=checkpoint)
            now = _stamp(self._clock())
            self._leave_verdict(_verdict(status, code, error, self.rank, now))

    def _leave_verdict(self, verdict: dict[str, Any]) -> None:
        assert self._folder is not None
        if self._is_foreign and not self._has_trained:  # somebody's model is left as it was
            if self._has_said:
                with suppress(OSError):
                    (self._folder / STATUS).unlink()
            return
        written = load_status(self._folder)
        status = verdict["status"]
        if self.rank != 0:
            told = (written or {}).get("status") in ("failed", "complete")
            if status == "failed" and not told:
                self._leave({**(written or {}), **verdict})
            return
        kept = self._standing(written)
        if kept is not None:
            if status != "complete":
                kept = {**kept, LAST_START: {k: v for k, v in verdict.items() if k != "rank"}}
            self._leave(kept)
        elif status == "interrupted" and self._was_failed_by_another(written):
            return  # the launcher ends the others where one rank has failed
        else:
            self._leave({**self._content, **verdict, "heartbeat": verdict["time"]})

    def _standing(self, written: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The verdict of a finished run that this one has not touched."""
        if self._has_trained:
            return None
        if not self._has_said and (written or {}).get("status") == "complete":
            return dict(written or {})  # refused before it said that it runs
        return self._former

    def _was_failed_by_another(self, written: Mapping[str, Any] | None) -> bool:
        return self._has_said and (written or {}).get("status") == "failed"

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._content["heartbeat"] = _stamp(self._clock())
            self._write_quietly()

    def _write_quietly(self) -> None:
        try:
            self._write()
        except OSError as err:  # a full disk, say: training itself tells when it matters
            logger.debug("cannot write %s: %s", STATUS, err)

    def _write(self) -> None:
        if self._folder is None or self.rank != 0:
            return
        with self._lock:
            if self._ended:
                return
            content = dict(self._content)
            if self._has_said and self._was_failed_by_another(load_status(self._folder)):
                return
            if self._former is not None and not self._has_trained:
                content[FORMER] = self._former
            write_json(self._folder / STATUS, content)
            self._has_said = True

    def _leave(self, content: Mapping[str, Any]) -> None:
        assert self._folder is not None
        path = self._folder / STATUS
        try:
            write_json(path, content)
        except OSError as err:
            # No room for a second file, perhaps: there is for the first.
            text = json.dumps(content, ensure_ascii=False, default=str)
            try:
                with open(path, "r+", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text)
                    file.truncate()
            except OSError:
                logger.error("cannot write %s: %s", path, err.strerror)


def _verdict(
    status: Verdict, code: int | None, error: str | None, rank: int, now: str
) -> dict[str, Any]:
    return {"status": status, "exit_code": code, "error": error, "rank": rank, "time": now}
