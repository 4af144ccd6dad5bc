"""What Slurm tells a process: node list, master address, port, tasks on this node.

Reads the environment that it is handed and asks ``scontrol``; starts nothing.
"""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping

from internvl_chat.errors import ConfigError

FIRST_DERIVED_PORT = 15000
NUM_DERIVED_PORTS = 17000
"""Derived ports lie in 15000-31999: above the registered services, below Linux's ephemeral ones."""


def number_in(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    """A launcher's variable as a number.

    Raises:
        ConfigError: it is not set (and has no default), or is no number.
    """
    text = environ.get(name, default)
    if text is None or not text.strip().isdigit():
        raise ConfigError(
            f"want a number, got {text!r}", where=name, fix="Start with torchrun or srun."
        )
    return int(text)


def require_step(environ: Mapping[str, str]) -> None:
    """See that several tasks are a step of srun: in its batch script a job has the numbers alone.

    Raises:
        ConfigError: SLURM_NTASKS counts tasks that nobody has started.
    """
    tasks = number_in(environ, "SLURM_NTASKS")
    if tasks > 1 and not environ.get("SLURM_STEP_ID"):
        raise ConfigError(
            f"the job has {tasks} tasks (SLURM_NTASKS), but this process is no step of srun: it is "
            "alone, and would wait for the others",
            where="SLURM_STEP_ID",
            fix="Start it with srun (a recipe: LAUNCHER=slurm); for a single process unset "
            "SLURM_NTASKS.",
        )


def master_port(environ: Mapping[str, str]) -> int:
    """MASTER_PORT, or one that neighbouring jobs and the steps of one job do not share."""
    if environ.get("MASTER_PORT"):
        return number_in(environ, "MASTER_PORT")
    job, step = environ.get("SLURM_JOB_ID", "0"), environ.get("SLURM_STEP_ID", "0")
    number = int(job) * 17 + int(step) if job.isdigit() and step.isdigit() else 0
    return FIRST_DERIVED_PORT + number % NUM_DERIVED_PORTS


def master_address(environ: Mapping[str, str]) -> tuple[str, str]:
    """Address of rank 0's host, and how it was found."""
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"], "master from MASTER_ADDR"
    # A step (srun -N1 inside a larger job) may run on fewer hosts than the job.
    nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    if not nodelist:
        return "127.0.0.1", "no SLURM_JOB_NODELIST: master is this host"
    host = expand_nodelist(nodelist)[0]
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        address = _node_address(host)
        if address is None:
            raise ConfigError(
                f"the name {host!r}, first of {nodelist}, does not resolve and scontrol gives no "
                "address for it",
                where="SLURM_JOB_NODELIST",
                fix="Set MASTER_ADDR to the address of the first node.",
            ) from None
        return address, f"master {host} does not resolve: NodeAddr {address} from scontrol"
    return host, f"master {host}, first of {nodelist}"


def _node_address(host: str) -> str | None:
    """NodeAddr of a node, from ``scontrol show node``; None if Slurm does not say."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", host],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    return found.group(1) if found else None


def tasks_on_this_node(environ: Mapping[str, str]) -> int | None:
    """Entry of this node in SLURM_STEP_TASKS_PER_NODE, e.g. ``2(x3),1``; None if not told."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    node = environ.get("SLURM_NODEID", "")
    if not text or not node.isdigit():
        return None
    counts: list[int] = []
    for item in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item.strip())
        if not found:
            return None
        counts += [int(found.group(1))] * int(found.group(2) or 1)
    return counts[int(node)] if int(node) < len(counts) else None


def expand_nodelist(nodelist: str) -> list[str]:
    """Expand Slurm's compressed host list: ``n[1-2,05],m3`` gives n1, n2, n05, m3.

    Zero padding is kept, several brackets in one name multiply in the order Slurm prints them.

    Raises:
        ConfigError: the brackets do not match or a range is no range.

    Source: https://slurm.schedmd.com/scontrol.html (show hostnames)
    """
    hosts: list[str] = []
    for name in _split_outside_brackets(nodelist):
        parts = re.split(r"(\[[^\]]*\])", name)
        choices = [list(_bracket(part, nodelist)) for part in parts if part]
        hosts += ["".join(combination) for combination in itertools.product(*choices)]
    return hosts


def _split_outside_brackets(text: str) -> list[str]:
    names = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if ",".join(names) != text.strip(",") or not names:
        raise ConfigError(
            f"cannot read the node list {text!r}",
            where="SLURM_JOB_NODELIST",
            fix="Set MASTER_ADDR to the host of rank 0.",
        )
    return names


def _bracket(part: str, nodelist: str) -> Iterator[str]:
    if not part.startswith("["):
        yield part
        return
    for item in part[1:-1].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if not found:
            raise ConfigError(
                f"cannot read {item!r} in the node list {nodelist!r}",
                where="SLURM_JOB_NODELIST",
                fix="Set MASTER_ADDR to the host of rank 0.",
            )
        first, last = found.group(1), found.group(2) or found.group(1)
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))
