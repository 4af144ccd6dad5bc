"""Who am I, where is rank 0, who reports an error: from torchrun's and SLURM's variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from internvl_chat.errors import ConfigError
from internvl_chat.train import distributed, slurm
from internvl_chat.train.distributed import (
    DistributedState,
    Launcher,
    Placement,
    RendezvousError,
    ahead_on_each_node,
    cores_per_process,
    find_placement,
    init_distributed,
    same_error_on_rank_zero,
)
from internvl_chat.train.process_identity import ProcessIdentity

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.5",
    "MASTER_PORT": "29555",
}
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1(x2)",
}


def test_torchrun() -> None:
    place = find_placement(TORCHRUN)
    assert (place.launcher, place.rank, place.local_rank, place.world_size) == ("pytorch", 3, 1, 4)
    assert (place.master_addr, place.master_port) == ("10.0.0.5", 29555)
    assert place.notes == ("ranks from torchrun",)


def test_torchrun_wins_inside_srun() -> None:
    place = find_placement({**SLURM, **TORCHRUN})
    assert (place.rank, place.world_size) == (3, 4)
    assert place.notes == ("torchrun inside srun: torchrun's ranks win over SLURM's",)


def test_launcher_decides() -> None:
    place = find_placement({**SLURM, **TORCHRUN, "LAUNCHER": "slurm"})
    assert (place.launcher, place.rank, place.world_size) == ("slurm", 5, 8)
    single = find_placement({**SLURM, "LAUNCHER": "pytorch"}, free_port=1234)
    assert (single.launcher, single.world_size, single.master_port) == ("single", 1, 1234)


def test_slurm() -> None:
    place = find_placement(SLURM)
    assert (place.launcher, place.rank, place.local_rank, place.world_size) == ("slurm", 5, 1, 8)
    assert place.master_addr == "localhost"
    assert place.master_port == 15000 + (4711 * 17) % 17000
    assert place.local_world_size == 2


def test_a_job_of_several_tasks_without_its_srun_is_told() -> None:
    batch = {name: value for name, value in SLURM.items() if "STEP" not in name}
    with pytest.raises(ConfigError, match=r"8 tasks .* no step of srun.*Start it with srun"):
        find_placement(batch)
    with pytest.raises(ConfigError, match="no step of srun"):
        find_placement({**batch, "LAUNCHER": "slurm"})
    alone = find_placement({**batch, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert (alone.rank, alone.world_size) == (0, 1)
    assert find_placement({**batch, "LAUNCHER": "pytorch"}, free_port=1234).world_size == 1
    assert find_placement({**batch, **TORCHRUN}).world_size == 4


def test_slurm_ports_of_neighbours_differ() -> None:
    jobs = [{**SLURM, "SLURM_JOB_ID": str(4711 + n)} for n in range(100)]
    steps = [{**SLURM, "SLURM_STEP_ID": str(n)} for n in range(1, 10)]
    assert len({find_placement(e).master_port for e in (*jobs, *steps)}) == 109


def test_slurm_environment_wins_over_derived() -> None:
    place = find_placement({**SLURM, "MASTER_ADDR": "10.1.1.1", "MASTER_PORT": "23456"})
    assert (place.master_addr, place.master_port) == ("10.1.1.1", 23456)


def test_slurm_address_of_a_name_that_does_not_resolve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\necho "NodeName=$3 Arch=x86_64"\necho "   NodeAddr=127.0.0.7 X=1"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    place = find_placement({**SLURM, "SLURM_JOB_NODELIST": "no-such-host-[3-4]"})
    assert place.master_addr == "127.0.0.7"
    assert "NodeAddr 127.0.0.7 from scontrol" in place.notes[-1]


def test_slurm_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_scontrol(*args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError("scontrol")

    monkeypatch.setattr(slurm.subprocess, "run", no_scontrol)
    with pytest.raises(ConfigError, match=r"'no-such-host-3', first of .*Set MASTER_ADDR"):
        find_placement({**SLURM, "SLURM_JOB_NODELIST": "no-such-host-[3-4]"})


@pytest.mark.parametrize(
    ("launcher", "environ", "usable", "cores"),
    [
        ("single", {}, 8, 8),
        ("pytorch", {"LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "64"}, 96, 12),
        ("pytorch", {"LOCAL_WORLD_SIZE": "8", "SLURM_CPUS_PER_TASK": "96"}, 96, 12),
        ("pytorch", {"LOCAL_WORLD_SIZE": "8"}, 4, 0),
        ("slurm", {"LOCAL_WORLD_SIZE": "8", "SLURM_CPUS_PER_TASK": "10"}, 10, 10),
        ("slurm", {"LOCAL_WORLD_SIZE": "8", "SLURM_CPUS_PER_TASK": "10"}, 80, 10),
        ("slurm", {"LOCAL_WORLD_SIZE": "8"}, 80, 10),
    ],
)
def test_cores_of_a_process(
    launcher: Launcher, environ: dict[str, str], usable: int, cores: int
) -> None:
    assert cores_per_process(launcher, environ, usable) == cores


def test_neither() -> None:
    place = find_placement({}, free_port=4321)
    assert (place.launcher, place.rank, place.world_size) == ("single", 0, 1)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LAUNCHER": "mpi"}, "unknown launcher 'mpi'"),
        ({"LAUNCHER": "slurm"}, "SLURM_PROCID and SLURM_NTASKS are not set"),
        ({**TORCHRUN, "RANK": "x"}, "want a number, got 'x'"),
    ],
)
def test_mistakes(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_placement(environ)


def test_a_master_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is exported here goes again
    place = Placement(
        launcher="slurm",
        rank=1,
        local_rank=1,
        world_size=2,
        master_addr="127.0.0.1",
        master_port=9,
    )
    with pytest.raises(RendezvousError) as caught:
        init_distributed(timeout_seconds=1, use_cpu=True, placement=place)
    text = str(caught.value)
    assert text.startswith("rank 1 of 2 on ")
    assert "did not reach the group at 127.0.0.1:9 within 1 s" in text
    assert "--ddp_timeout" in text
    assert caught.value.exit_code == 6


def member(rank: int, store: dist.Store | None) -> DistributedState:
    """One of two ranks that share a rendezvous store."""
    return DistributedState(
        launcher="pytorch",
        rank=rank,
        local_rank=rank,
        world_size=2,
        backend="gloo",
        device=torch.device("cpu"),
        master="127.0.0.1:29500",
        notes=(),
        store=store,
    )


def test_one_process_of_a_machine_works_and_the_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "_raise_first", lambda error, state: None)
    store, done, arrived = dist.HashStore(), [], threading.Event()
    other = threading.Thread(
        target=lambda: (
            ahead_on_each_node(member(1, store), lambda: done.append(1), name="work"),
            arrived.set(),
        )
    )
    other.start()
    ahead_on_each_node(member(0, store), lambda: done.extend([0, arrived.is_set()]), name="work")
    assert arrived.wait(60)
    other.join()
    assert done == [0, False]


def test_who_waits_learns_of_a_process_that_died() -> None:
    store = dist.HashStore()
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **CAPTURED)
    dead = replace(ProcessIdentity.current(), pid=int(child.stdout))
    store.set("process/0", json.dumps(asdict(dead)))
    with pytest.raises(RuntimeError, match=r"rank 0 \(process \d+\) was killed or crashed"):
        ahead_on_each_node(member(1, store), lambda: None, name="work")


def test_the_error_of_rank_zero_is_told_once() -> None:
    store = dist.HashStore()
    assert not same_error_on_rank_zero(member(0, store), "no such file")
    assert same_error_on_rank_zero(member(1, store), "no such file")


def test_an_error_of_its_own_is_told_by_each_rank() -> None:
    store = dist.HashStore()
    assert not same_error_on_rank_zero(member(0, store), "no such file")
    assert not same_error_on_rank_zero(member(1, store), "disk full")


def test_an_error_is_told_when_rank_zero_reports_none() -> None:
    assert not same_error_on_rank_zero(member(1, dist.HashStore()), "disk full", wait=0.1)


def test_rank_zero_that_reports_late_is_waited_for() -> None:
    store = dist.HashStore()
    late = threading.Timer(0.2, store.set, ("error/0", "no such file"))
    late.start()
    assert same_error_on_rank_zero(member(1, store), "no such file", wait=60)
    late.join()


def test_an_error_is_told_without_a_group_or_when_its_store_is_gone() -> None:
    class Gone(dist.HashStore):
        def set(self, *args: Any) -> None:
            raise dist.DistNetworkError("connection reset")

    assert not same_error_on_rank_zero(None, "disk full")
    assert not same_error_on_rank_zero(member(1, None), "disk full")
    assert not same_error_on_rank_zero(member(1, Gone()), "disk full")
