"""What became of the run in a folder, and what it can go on from. Loads no torch, no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.checkpoint.manifest import list_checkpoints, verify_manifest
from internvl_chat.errors import ConfigError
from internvl_chat.train.status import LAST_START, STATUS, read_status

POSITION = "data_position.json"
"""Of a checkpoint that can be continued: its place in the data."""

EXIT_CODES = {"complete": 0, "failed": 1, "running": 3, "interrupted": 4, "saved": 4}
"""Of ``internvl-chat status``, by verdict; 2 is wrong use, as everywhere."""


@dataclass(frozen=True, kw_only=True)
class RunStanding:
    """A run's folder, as far as its files tell."""

    output_dir: str
    content: Mapping[str, Any]
    """Of ``status.json``; the verdict of a process that was killed is put right."""
    resumable: str | None
    """Name of the newest checkpoint that can be continued."""
    resumable_step: int | None
    damaged: tuple[str, ...]
    """Newer checkpoints that cannot, each with the reason."""

    @property
    def exit_code(self) -> int:
        """Of the verb."""
        return EXIT_CODES.get(str(self.content["status"]), 1)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: the status file's keys, and what can be continued."""
        return {
            "output_dir": self.output_dir,
            **self.content,
            "resumable": self.resumable,
            "resumable_step": self.resumable_step,
            "damaged": list(self.damaged),
        }

    def as_text(self) -> str:
        """A line for the verdict, and one for each thing that a user may want to know then."""
        told = self.content
        code = "" if told.get("exit_code") is None else f" (exit code {told['exit_code']})"
        lines = [f"{self.output_dir}: {told['status']}{code}"]
        if told.get("error"):
            lines.append(f"  {told['error']}")
        told_of = (self._progress(), self._outcome(), self._last_start())
        lines += [f"  {line}" for line in told_of if line]
        lines += [f"  passed over: {line}" for line in self.damaged]
        if told["status"] not in ("complete", "running"):
            lines.append(f"  {self._what_next()}")
        return "\n".join(lines)

    def _progress(self) -> str:
        told, parts = self.content, []
        if told.get("max_steps") is not None:
            parts.append(f"step {told.get('step')} of {told['max_steps']}")
        if told.get("pid") is not None:
            parts.append(f"process {told['pid']} on {told.get('host')}")
        parts += [f"{name} {told[name]}" for name in ("started", "heartbeat") if told.get(name)]
        return ", ".join(parts).replace("heartbeat", "last sign of life")

    def _outcome(self) -> str:
        """Why the run ended before its last step, and its best evaluation."""
        parts = [str(self.content["stopped_early"])] if self.content.get("stopped_early") else []
        best = self.content.get("best")
        if isinstance(best, dict) and isinstance(best.get("value"), int | float):
            parts.append(
                f"best {best.get('metric')} {best['value']:.4f} at step {best.get('step')}"
            )
        return "; ".join(parts)

    def _last_start(self) -> str:
        last = self.content.get(LAST_START)
        if not isinstance(last, dict):
            return ""
        return (
            f"a later start changed nothing: {last.get('status')} at {last.get('time')}, "
            f"{last.get('error')}"
        )

    def _what_next(self) -> str:
        if self.resumable is None:
            return "nothing to continue from: the same command starts anew"
        last = self.content.get("max_steps")
        of = "" if last is None else f" of {last}"
        return f"the same command goes on from {self.resumable}, step {self.resumable_step}{of}"


def read_standing(output_dir: Path, *, deep: bool = True, now: float | None = None) -> RunStanding:
    """Read the status of a run, and verify its checkpoints where it is not finished.

    Args:
        output_dir: of the run.
        deep: compare checksums, too, which reads every byte; else sizes only.
        now: seconds since 1970; the clock's if None.

    Raises:
        ConfigError: there is no such folder, or no status in it that can be read.
    """
    if not output_dir.is_dir():
        raise ConfigError("no such folder", where=str(output_dir), fix="Name an OUTPUT_DIR.")
    content = read_status(output_dir, now=now)
    if content is None or not isinstance(content.get("status"), str):
        raise ConfigError(
            f"no {STATUS} that can be read: no training has got as far as its start here",
            where=str(output_dir),
            fix="Name the OUTPUT_DIR of a training.",
        )
    found: Path | None = None
    damaged: list[str] = []
    if content["status"] not in ("complete", "running"):
        for path in list_checkpoints(output_dir):
            problems = verify_manifest(path, deep=deep)
            if not problems and not (path / POSITION).is_file():
                problems = [f"no {POSITION}: saved without what it takes to continue"]
            if not problems:
                found = path
                break
            damaged.append(f"{path.name}: {'; '.join(problems[:3])}")
    return RunStanding(
        output_dir=str(output_dir),
        content=content,
        resumable=found.name if found else None,
        resumable_step=_step_of(found) if found else None,
        damaged=tuple(damaged),
    )


def _step_of(checkpoint: Path) -> int:
    position = json.loads((checkpoint / POSITION).read_text("utf-8"))
    return int(position["global_step"])
