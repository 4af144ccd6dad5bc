"""A private Slurm cluster of two nodes on this machine, for the tests and to try a recipe by hand.

    python tests/slurm/cluster.py start DIR     # prints `export SLURM_CONF=DIR/slurm.conf`
    python tests/slurm/cluster.py stop DIR

Debian's ``slurm-wlm`` and ``munge`` do the work (root; ``--install`` fetches them). Configuration,
keys, state, logs and pid files stay in DIR: nothing under /etc or /run is read or written. The
partition is ``train``; its nodes ``n1`` and ``n2`` resolve to nothing, as on some clusters, and
claim 32 CPUs and two GPUs each, which are empty files.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "scontrol", "scancel")
PACKAGES = ("slurm-wlm", "munge")
NODES = ("n1", "n2")
GPUS_PER_NODE = 2
START_SECONDS = 60

SLURM_CONF = """\
ClusterName=localtest
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=5
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{node_ports}] \
CPUs=32 CoresPerSocket=32 Gres=gpu:{gpus} RealMemory=8000
PartitionName=train Nodes=n[1-2] Default=YES State=UP
"""


def missing_programs() -> list[str]:
    """The programs of a cluster that are not on PATH (sbin included)."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def install() -> bool:
    """Fetch Debian's packages; False (no error) where that cannot be done."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-q", *command], env=environment, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            return False
    return not missing_programs()


class Cluster:
    """Two slurmd, one slurmctld and one munged, all with their files in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.conf = self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find this cluster, to be added to ``os.environ``."""
        return {"SLURM_CONF": str(self.conf), "PATH": _path()}

    def start(self) -> None:
        """Write the configuration, start the daemons and wait until both nodes are idle.

        Raises:
            RuntimeError: a daemon or node did not come up; the message holds the end of the logs.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)  # pytest's 0700 would hide munge's socket from other users
        (self.root / "state").mkdir(exist_ok=True)
        self._write_configuration()
        try:
            self._start_munge()
            self._daemon("slurmctld", "-c", "-f", str(self.conf))
            for node in NODES:
                (self.root / f"spool-{node}").mkdir(exist_ok=True)
                self._daemon("slurmd", "-N", node, "-f", str(self.conf))
            self._wait_for_nodes()
        except RuntimeError:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel what runs and end the daemons by their pid files."""
        if (self.root / "slurmctld.pid").exists():
            self.run("scancel", "--partition=train", "--full", check=False)
        pids = [pid for path in sorted(self.root.glob("*.pid")) if (pid := _read_pid(path))]
        for pid in pids:
            _kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in pids:
            _kill(pid, signal.SIGKILL)
        for path in self.root.glob("*.pid"):
            path.unlink(missing_ok=True)

    def wait_until_idle(self, seconds: float = 60.0) -> None:
        """No job is left; one is completing for some moments after its end."""
        deadline = time.monotonic() + seconds
        while (left := self.run("squeue", "-h").stdout) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == "", f"still running: {left}"

    def run(
        self, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a Slurm client against this cluster."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            command, env=environment, text=True, capture_output=True, check=check, timeout=timeout
        )

    def kill_daemon(self, name: str) -> None:
        """SIGKILL one daemon, e.g. ``slurmd-n2``: a node that falls away."""
        if pid := _read_pid(self.root / f"{name}.pid"):
            _kill(pid, signal.SIGKILL)

    def _write_configuration(self) -> None:
        first = _free_ports(len(NODES) + 1)
        self.conf.write_text(
            SLURM_CONF.format(
                root=self.root,
                controller_port=first,
                node_ports=f"{first + 1}-{first + len(NODES)}",
                gpus=GPUS_PER_NODE,
            )
        )
        # Without File= the nodes register with no GPU; empty ordinary files will do.
        for gpu in range(GPUS_PER_NODE):
            (self.root / f"gpu{gpu}").touch()
        (self.root / "gres.conf").write_text(
            f"NodeName=n[1-2] Name=gpu File={self.root}/gpu[0-{GPUS_PER_NODE - 1}]\n"
        )

    def _start_munge(self) -> None:
        key = self.root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        # --force: the folder may lie under a /tmp that anyone may write.
        options = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid"}
        options |= {"log-file": "munged.log", "seed-file": "munge.seed"}
        self._daemon("munged", "--force", *(f"--{k}={self.root / v}" for k, v in options.items()))

    def _daemon(self, *command: str) -> None:
        environment: Mapping[str, str] = {**os.environ, **self.environment}
        with (self.root / "start.log").open("a") as log:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
                timeout=START_SECONDS,
            )
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}\n{self._logs()}")

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        states = ""
        while time.monotonic() < deadline:
            states = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).stdout
            if states.split() == [word for node in NODES for word in (node, "idle")]:
                return
            time.sleep(0.2)
        raise RuntimeError(f"the nodes are not idle: {states!r}\n{self._logs()}")

    def _logs(self) -> str:
        ends = (
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.root.glob("*.log"))
        )
        return "\n".join(ends)


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _free_ports(count: int) -> int:
    """The first of ``count`` neighbouring ports that are free now."""
    for first in range(17001, 18000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports between 17001 and 18000")


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _alive(pid: int) -> bool:
    try:
        # A daemon whose parent never waits stays behind as a zombie: it has ended all the same.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--install", action="store_true", help="fetch Debian's packages if missing")
    arguments = parser.parse_args()
    cluster = Cluster(arguments.root)
    if arguments.action == "stop":
        cluster.stop()
        return 0
    if missing_programs() and not (arguments.install and install()):
        sys.stderr.write(
            f"missing: {' '.join(missing_programs())}. apt-get install slurm-wlm munge\n"
        )
        return 2
    cluster.start()
    print(f"export SLURM_CONF={cluster.conf}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
