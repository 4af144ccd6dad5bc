"""One way to start: under torchrun, under srun, or as a single process.

Only this module decides rank and world size (``slurm`` reads what Slurm says of them). It leaves
the variables that accelerate and DeepSpeed look for (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``,
``MASTER_ADDR``, ``MASTER_PORT``) behind, so that they see what it decided.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from internvl_chat.errors import ConfigError, UserError
from internvl_chat.train import slurm
from internvl_chat.train.process_identity import ProcessIdentity

logger = logging.getLogger(__name__)

T = TypeVar("T")

Launcher = Literal["pytorch", "slurm", "single"]


_POLL_SECONDS = 0.2
"""Between two looks at the rendezvous' store."""


class RendezvousError(UserError):
    """The processes did not find each other in time; trying again is sensible."""

    exit_code = 6


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where this process stands, as the launcher says it; nothing is connected yet."""

    launcher: Launcher
    rank: int
    local_rank: int
    world_size: int
    master_addr: str
    master_port: int
    local_world_size: int | None = None
    notes: tuple[str, ...] = ()
    """What was decided and why, for the log."""


@dataclass(frozen=True, kw_only=True)
class DistributedState:
    """The initialised process group, or a single process without one."""

    launcher: Launcher
    rank: int
    local_rank: int
    world_size: int
    backend: str | None
    """``nccl`` or ``gloo``; None without a process group."""
    device: torch.device
    master: str | None
    """``host:port`` of rank 0; None without a process group."""
    notes: tuple[str, ...]
    store: dist.Store | None = None
    """Key-value store of the rendezvous: works when a collective cannot."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, the one that writes files and draws the progress bar."""
        return self.rank == 0


def find_placement(environ: Mapping[str, str], *, free_port: int | None = None) -> Placement:
    """Read rank, world size and master from torchrun's or SLURM's variables.

    Args:
        environ: the environment; torchrun's variables win over SLURM's unless ``LAUNCHER`` says
            ``slurm`` or ``pytorch``.
        free_port: port of a single process's own group (asked from the system if None).

    Raises:
        ConfigError: ``LAUNCHER`` is unknown, or the launcher it names has not set its variables.
    """
    launcher, notes = _choose_launcher(environ)
    if launcher == "pytorch":
        return Placement(
            launcher=launcher,
            rank=slurm.number_in(environ, "RANK"),
            local_rank=slurm.number_in(environ, "LOCAL_RANK", environ.get("RANK", "0")),
            world_size=slurm.number_in(environ, "WORLD_SIZE"),
            master_addr=environ.get("MASTER_ADDR", "127.0.0.1"),
            master_port=slurm.number_in(environ, "MASTER_PORT", "29500"),
            local_world_size=slurm.number_in(environ, "LOCAL_WORLD_SIZE", environ["WORLD_SIZE"]),
            notes=notes,
        )
    if launcher == "slurm":
        slurm.require_step(environ)
        address, how = slurm.master_address(environ)
        return Placement(
            launcher=launcher,
            rank=slurm.number_in(environ, "SLURM_PROCID"),
            local_rank=slurm.number_in(environ, "SLURM_LOCALID"),
            world_size=slurm.number_in(environ, "SLURM_NTASKS"),
            master_addr=address,
            master_port=slurm.master_port(environ),
            local_world_size=slurm.tasks_on_this_node(environ),
            notes=(*notes, how),
        )
    port = free_port if free_port is not None else _free_port()
    return Placement(
        launcher=launcher,
        rank=0,
        local_rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=port,
        local_world_size=1,
        notes=notes,
    )


def cores_per_process(launcher: Launcher, environ: Mapping[str, str], usable: int) -> int:
    """Cores that a process of this node may have for itself; 0 where there are more processes.

    Args:
        launcher: of this process.
        environ: the environment that :func:`init_distributed` leaves.
        usable: cores that this process may run on. ``srun --cpus-per-task`` gives each task its
            own; otherwise the processes of a node share what they see.
    """
    of_task = environ.get("SLURM_CPUS_PER_TASK", "")
    if launcher == "slurm" and of_task.isdigit():
        return min(int(of_task), usable)
    return usable // int(environ.get("LOCAL_WORLD_SIZE", "1"))


def init_distributed(
    *,
    timeout_seconds: float = 1800,
    use_cpu: bool = False,
    deepspeed: bool = False,
    placement: Placement | None = None,
) -> DistributedState:
    """Start the process group and pick this process's device. Call once, before anything else.

    Args:
        timeout_seconds: of the rendezvous and of every collective (``--ddp_timeout``).
        use_cpu: stay on the CPU (gloo) although there is a GPU.
        deepspeed: tell DeepSpeed of the group, too; it needs one even for a single process.
        placement: where this process stands; read from the environment if None.

    Raises:
        RendezvousError: names the host and port tried and the host it was tried from.
        ConfigError: see :func:`find_placement`; more processes on this node than GPUs.
    """
    place = placement or find_placement(os.environ)
    device = _pick_device(place, use_cpu=use_cpu)
    if place.launcher == "single" and not deepspeed:
        return DistributedState(
            launcher=place.launcher,
            rank=0,
            local_rank=0,
            world_size=1,
            backend=None,
            device=device,
            master=None,
            notes=place.notes,
        )
    _export(place, device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = _connect(place, backend, timeout_seconds, device)
    store.set(f"process/{place.rank}", json.dumps(asdict(ProcessIdentity.current())))
    if deepspeed:
        _tell_deepspeed(backend, device)
    return DistributedState(
        launcher=place.launcher,
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        backend=backend,
        device=device,
        master=f"{place.master_addr}:{place.master_port}",
        notes=place.notes,
        store=store,
    )


def shut_down() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def agree(
    state: DistributedState, work: Callable[[], T], *, one_after_the_other: bool = False
) -> T:
    """Do something on every rank; if the user's mistake stops one of them, it stops all.

    Without this a rank that fails alone (a file missing on its node) would leave the others
    waiting in their next collective. ``work`` itself must hold no collective if the ranks take
    turns.

    Args:
        state: of this process.
        work: what to do.
        one_after_the_other: the first process of each node goes ahead, so that the others find
            the caches it wrote.

    Raises:
        UserError: the first rank's, on all ranks.
    """
    if state.world_size == 1:
        return work()
    first = state.local_rank == 0 or not one_after_the_other
    result, error = _attempt(work) if first else (None, None)
    _raise_first(error, state)
    if not first:
        result, error = _attempt(work)
    if one_after_the_other:
        _raise_first(error, state)
    return result  # type: ignore[return-value]


def ahead_on_each_node(state: DistributedState, work: Callable[[], object], *, name: str) -> None:
    """Do something once on each machine that may take hours, as a download does.

    The first process of a machine works; the others wait as long as those of their machine live.
    Collectives have a limit (``--ddp_timeout``), so they wait at the rendezvous' store.

    Args:
        state: of this process.
        work: holds no collective.
        name: of the work; another one each time.

    Raises:
        UserError: the first rank's, on all ranks.
        RuntimeError: a process of this machine has died meanwhile.
    """
    if state.world_size == 1 or state.store is None:
        work()
        return
    error = _attempt(work)[1] if state.local_rank == 0 else None
    state.store.set(f"{name}/{state.rank}", "")
    keys = [f"{name}/{rank}" for rank in range(state.world_size)]
    while not state.store.check(keys):
        died = rank_that_died(state)
        if died is not None:
            raise RuntimeError(died)
        time.sleep(_POLL_SECONDS)
    _raise_first(error, state)


def from_rank_zero(state: DistributedState, work: Callable[[], T]) -> T:
    """Do something on rank 0 only, and hand its result, which must pickle, to all ranks.

    Args:
        state: of this process.
        work: what to do; it holds no collective.

    Raises:
        UserError: rank 0's, on all ranks.
    """
    if state.world_size == 1:
        return work()
    outcome: list[Any] = [_attempt(work) if state.is_main else None]
    dist.broadcast_object_list(outcome)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def sum_over_ranks(values: Tensor, world_size: int) -> Tensor:
    """Add up over all ranks, in place; every rank gets the sum."""
    if world_size > 1:
        dist.all_reduce(values)
    return values


def gather_over_ranks(values: Tensor, world_size: int) -> Tensor:
    """(F,) on every rank -> (ranks, F) on every rank."""
    if world_size == 1:
        return values[None]
    gathered = values.new_empty(world_size * len(values))
    dist.all_gather_into_tensor(gathered, values)
    return gathered.view(world_size, len(values))


def _attempt(work: Callable[[], T]) -> tuple[T | None, UserError | None]:
    try:
        return work(), None
    except UserError as err:
        return None, err


def _raise_first(error: UserError | None, state: DistributedState) -> None:
    errors: list[UserError | None] = [None] * state.world_size
    dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise found


def same_error_on_rank_zero(state: DistributedState | None, text: str, wait: float = 5.0) -> bool:
    """Tell whether rank 0 reports the very same error, so that this rank may stay silent.

    Goes through the rendezvous store, not through a collective: the other ranks may be inside one.
    """
    if state is None or state.store is None:
        return False
    try:
        state.store.set(f"error/{state.rank}", text)
        if state.is_main:
            return False
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if state.store.check(["error/0"]):
                return state.store.get("error/0") == text.encode()
            time.sleep(0.05)
    except dist.DistError:  # rank 0, which hosts the store, is gone
        return False
    return False


def announce_end(state: DistributedState | None) -> None:
    """Tell the others that this rank ends because it was told to."""
    if state is not None and state.store is not None:
        with suppress(dist.DistError):  # rank 0, which hosts the store, is gone
            state.store.set(f"ended/{state.rank}", "")


def let_rank_zero_speak(state: DistributedState | None, wait: float = 5.0) -> None:
    """Rank 0 tells that its last word is said; the others wait for that, if it is there to say one.

    A rank that leaves first lets the launcher kill the others.
    """
    if state is None or state.store is None:
        return
    deadline = time.monotonic() + wait
    with suppress(dist.DistError):  # rank 0, which hosts the store, is gone
        if state.is_main:
            state.store.set("last_word", "")
        while not state.store.check(["last_word"]) and time.monotonic() < deadline:
            time.sleep(0.05)


def rank_that_died(state: DistributedState | None) -> str | None:
    """A rank of this machine that has ended without a word, in a sentence; None without one."""
    if state is None or state.store is None:
        return None
    try:
        for rank in range(state.world_size):
            keys = [f"process/{rank}"], [f"ended/{rank}"]
            if rank == state.rank or not state.store.check(keys[0]) or state.store.check(keys[1]):
                continue
            process = ProcessIdentity.of(json.loads(state.store.get(keys[0][0])))
            if process is not None and process.is_alive() is False:
                return f"rank {rank} (process {process.pid}) was killed or crashed"
    except dist.DistError:
        return None
    return None


def _choose_launcher(environ: Mapping[str, str]) -> tuple[Launcher, tuple[str, ...]]:
    has_torchrun = "RANK" in environ and "WORLD_SIZE" in environ
    has_slurm = "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ
    wanted = environ.get("LAUNCHER", "")
    if wanted not in ("", "pytorch", "slurm"):
        raise ConfigError(
            f"unknown launcher {wanted!r}",
            where="LAUNCHER",
            fix="Set it to slurm or pytorch, or leave it unset.",
        )
    if wanted == "slurm":
        if not has_slurm:
            raise ConfigError(
                "LAUNCHER=slurm, but SLURM_PROCID and SLURM_NTASKS are not set",
                where="LAUNCHER",
                fix="Start the training with srun, or unset LAUNCHER.",
            )
        return "slurm", ("LAUNCHER=slurm decides: ranks from SLURM",)
    if has_torchrun:
        if has_slurm:
            return "pytorch", ("torchrun inside srun: torchrun's ranks win over SLURM's",)
        return "pytorch", ("ranks from torchrun",)
    if wanted == "pytorch":
        return "single", ("LAUNCHER=pytorch without torchrun's RANK: a single process",)
    if has_slurm:
        return "slurm", ("ranks from SLURM",)
    return "single", ("no launcher's variables: a single process",)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pick_device(place: Placement, *, use_cpu: bool) -> torch.device:
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # Slurm may bind one GPU to each task; every task then sees its own as number 0.
    index = 0 if count == 1 else place.local_rank
    if index >= count or (count == 1 and place.local_rank and _shares_gpu()):
        raise ConfigError(
            f"process {place.local_rank} of this node has no GPU: {count} visible",
            where="CUDA_VISIBLE_DEVICES",
            fix="Start one process per GPU (GPUS_PER_NODE), or pass --use_cpu True.",
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _shares_gpu() -> bool:
    """One visible GPU and a local rank above 0: bound by Slurm, or one GPU for several ranks?"""
    return not any(name in os.environ for name in ("SLURM_LOCALID", "SLURM_GPUS_PER_TASK"))


def _export(place: Placement, device: torch.device) -> None:
    """Set what accelerate and DeepSpeed read."""
    local_rank = device.index if device.index is not None else place.local_rank
    os.environ.update(
        RANK=str(place.rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(place.world_size),
        MASTER_ADDR=place.master_addr,
        MASTER_PORT=str(place.master_port),
    )
    if place.local_world_size is not None:
        os.environ["LOCAL_WORLD_SIZE"] = str(place.local_world_size)


def join_deepspeed(state: DistributedState, *, timeout_seconds: float) -> DistributedState:
    """Tell DeepSpeed of the group after all; a single process without one gets it now.

    Args:
        state: of :func:`init_distributed` without ``deepspeed``.
        timeout_seconds: as there.

    Raises:
        RendezvousError: the port of the own group is taken.
    """
    if state.backend is None:
        return init_distributed(
            timeout_seconds=timeout_seconds, use_cpu=state.device.type == "cpu", deepspeed=True
        )
    _tell_deepspeed(state.backend, state.device)
    return state


def _tell_deepspeed(backend: str, device: torch.device) -> None:
    # Read when deepspeed is first imported; on a machine without a GPU it would guess, and warn.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    from internvl_chat.train.accelerators import use_own_accelerator

    use_own_accelerator(device.type)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def _connect(
    place: Placement, backend: str, timeout_seconds: float, device: torch.device
) -> dist.Store:
    timeout = datetime.timedelta(seconds=timeout_seconds)
    try:
        store, rank, world_size = next(
            rendezvous("env://", place.rank, place.world_size, timeout=timeout)
        )
        store.set_timeout(timeout)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        dist.barrier()
    except (dist.DistError, TimeoutError, RuntimeError) as err:
        raise RendezvousError(
            f"rank {place.rank} of {place.world_size} on {socket.gethostname()} did not reach the "
            f"group at {place.master_addr}:{place.master_port} within {timeout_seconds:g} s "
            f"({str(err).splitlines()[0]})",
            fix="Check that every rank started, that the address is rank 0's host and that no "
            "other job uses the port; set MASTER_ADDR and MASTER_PORT, or a longer --ddp_timeout.",
        ) from err
    return dist.PrefixStore("internvl_chat", store)
