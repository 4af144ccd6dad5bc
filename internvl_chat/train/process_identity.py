"""Which process it is that wrote something, and whether it still runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process, told apart from a later one of the same number; None is what is not known.

    Source: Linux, proc(5) and namespaces(7)
    """

    pid: int
    host: str
    started_ticks: int | None
    """Since the machine started."""
    boot_id: str | None
    pid_namespace: str | None

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            started_ticks=_start_of(os.getpid()),
            boot_id=_text_of("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_link_of("/proc/self/ns/pid"),
        )

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ProcessIdentity | None:
        """The process that a status names; None if it names none."""
        if not isinstance(content.get("pid"), int):
            return None
        return cls(**{one.name: content.get(one.name) for one in fields(cls)})  # type: ignore[arg-type]

    def is_alive(self) -> bool | None:
        """Whether it runs; None where this process cannot see it (another machine or container)."""
        me = ProcessIdentity.current()
        seen = (self.host, self.boot_id, self.pid_namespace)
        if seen != (me.host, me.boot_id, me.pid_namespace):
            return None
        if self.started_ticks is None:
            return _exists(self.pid)
        return _start_of(self.pid) == self.started_ticks


def _start_of(pid: int) -> int | None:
    """Clock ticks from the machine's start to the process's; None if there is no living one."""
    text = _text_of(f"/proc/{pid}/stat")
    if text is None:
        return None
    after_name = text.rpartition(")")[2].split()  # the name may hold blanks
    state, start = after_name[0], int(after_name[19])
    return None if state in "ZX" else start  # ended, and not yet fetched by its parent


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _text_of(path: str) -> str | None:
    try:
        return Path(path).read_text("utf-8", errors="replace").strip()
    except OSError:
        return None


def _link_of(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
