"""Work on many pieces in forked processes, in order, in bounded memory."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from internvl_chat.errors import DatasetError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PROCESSES = 32
_AHEAD = 4
"""Pieces per process that are given out before the first of them is taken back."""

_work: Callable[[Any], Any] | None = None


def own_cores() -> int:
    """Cores that this process may use; macOS pins no process to some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores() -> int:
    """As :func:`own_cores`, at most :data:`MAX_PROCESSES`."""
    return min(own_cores(), MAX_PROCESSES)


def forked_map(
    work: Callable[[Item], Result], items: Iterable[Item], *, num_processes: int
) -> Iterator[Result]:
    """``work(item)`` of each item, in their order.

    The processes are forked: they share what ``work`` refers to (a tokenizer, open files) as it is,
    and must use neither threads nor devices. With one process the work is done in this one.

    Args:
        work: returns something that can be pickled.
        items: taken as they are needed.
        num_processes: how many work at once.

    Raises:
        DatasetError: a process died, of lack of memory say.
    """
    if num_processes <= 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(work,),
    )
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(_run, item))
            if len(pending) >= _AHEAD * num_processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as err:
        raise DatasetError(
            f"one of {num_processes} processes died; usually there was too little memory for them",
            fix="Start again, with fewer cores (taskset) or more memory.",
        ) from err
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of this child: the processes are parallel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = work


def _run(item: Any) -> Any:
    assert _work is not None, "the pool's initializer has run"
    return _work(item)


def _end_with_parent() -> None:
    """A parent that was killed leaves no process waiting for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
