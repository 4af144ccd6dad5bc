"""Which Python the host is in during a step, by looking every few milliseconds.

A profiler that notes every call would slow down what is looked for. Backward hooks run on threads
of autograd's own, which Python's ``threading`` has not started: they are looked at first.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import FrameType
from typing import Any

SECONDS_BETWEEN = 0.002
PACKAGES = ("internvl_chat", "deepspeed", "peft", "transformers", "accelerate", "benchmarks")
"""What a sample is put on: the innermost of its frames that is of one of these."""
TORCH = "torch"
NAMED_PLACES = 12


class HostSamples:
    """Samples from :meth:`start` to :meth:`stop`, of the thread that starts it and autograd's."""

    def __init__(self) -> None:
        self._places: Counter[tuple[str, str]] = Counter()
        self._ended = threading.Event()
        self._own = threading.get_ident()
        self._thread = threading.Thread(target=self._look, name="host samples", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._own = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN):
            self._places[place_of(busy_frame(sys._current_frames(), self._own))] += 1

    def summary(self) -> dict[str, Any]:
        """Shares of the samples, by package and by function, largest first."""
        return shares(self._places)


def busy_frame(frames: Mapping[int, FrameType], own: int) -> FrameType:
    """The frame of a thread that Python has not started if there is one, else of ``own``."""
    started = {
        thread.ident
        for thread in threading.enumerate()
        if not isinstance(thread, threading._DummyThread)
    }
    foreign = [frame for ident, frame in frames.items() if ident not in started and ident != own]
    return foreign[0] if foreign else frames[own]


def place_of(frame: FrameType) -> tuple[str, str]:
    """Package and ``package/module.py:function`` of the innermost frame that is of a package."""
    for one in outwards(frame):
        parts = PurePath(one.f_code.co_filename).parts
        package = next((name for name in PACKAGES if name in parts[:-1]), None)
        if package is not None:
            file = "/".join(parts[len(parts) - 1 - parts[::-1].index(package) :])
            return package, f"{file}:{one.f_code.co_name}"
    return TORCH, TORCH


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def shares(places: Counter[tuple[str, str]]) -> dict[str, Any]:
    """Of how many samples: a share for every package, and for the functions that have most."""
    total = max(sum(places.values()), 1)
    packages: Counter[str] = Counter()
    for (package, _), number in places.items():
        packages[package] += number
    return {
        "samples": sum(places.values()),
        "packages": {name: number / total for name, number in packages.most_common()},
        "functions": {
            function: number / total for (_, function), number in places.most_common(NAMED_PLACES)
        },
    }
