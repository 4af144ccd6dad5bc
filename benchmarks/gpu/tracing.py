"""torch's profiler around one step: where its time goes.

    python -m benchmarks.gpu.tracing SPEC.json ARGUMENTS_OF_THE_TRAINER

is our trainer with such a step: the forward passes of the model are counted, and the step after
``first_step`` steps is traced and reported.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import report
from benchmarks.gpu.host_samples import HostSamples
from benchmarks.gpu.kernels import Kernel, busy_seconds, longest_kernels, seconds_by_class
from benchmarks.gpu.turn import wait_for_turn

NAMED_KERNELS = 40


class StepTrace:
    """Started before a step, stopped behind it."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        # On a GPU kernels only: noting every operator would slow the host, which is looked for.
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        self._profile = profile(activities=[activity])
        self._host = HostSamples()
        self._begin = self._seconds = 0.0

    def start(self) -> None:
        """Begin with an idle device."""
        self._synchronize()
        self._profile.start()
        self._host.start()
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """End when the device has done all of it."""
        self._synchronize()
        self._seconds = time.perf_counter() - self._begin
        self._host.stop()
        self._profile.stop()

    def summary(self) -> dict[str, Any]:
        """Seconds of the step, of the device's kernels by class, and without any."""
        wanted = DeviceType.CUDA if self._on_gpu else DeviceType.CPU
        kernels = [
            Kernel(event.name, event.time_range.start, event.time_range.end)
            for event in self._profile.events() or []
            if event.device_type == wanted
            and not event.is_user_annotation  # spans kernels that are there themselves
            and (self._on_gpu or event.cpu_parent is None)
        ]
        return {
            "step_seconds": self._seconds,
            "by_class": seconds_by_class(kernels),
            "idle": max(0.0, self._seconds - busy_seconds(kernels)),
            "num_kernels": len(kernels),
            "longest": longest_kernels(kernels, NAMED_KERNELS),
            "host": self._host.summary(),
        }

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


class TracedForward:
    """Counts the model's forward passes and traces one step of them.

    A hook of all modules finds the model, which the trainer builds; from then on one of the model
    alone counts.
    """

    def __init__(self, *, first: int, number: int, on_gpu: bool) -> None:
        self._first, self._last = first, first + number
        self._on_gpu = on_gpu
        self._passes = 0
        self._trace: StepTrace | None = None
        self._finder = register_module_forward_pre_hook(self._find)

    def _find(self, module: nn.Module, inputs: Any) -> None:
        if type(module).__name__ == "InternVLChatModel":
            self._finder.remove()
            module.register_forward_pre_hook(self._count)
            self._count(module, inputs)

    def _count(self, module: nn.Module, inputs: Any) -> None:
        if self._passes == self._first:
            self._trace = StepTrace(on_gpu=self._on_gpu)
            self._trace.start()
        elif self._passes == self._last and self._trace is not None:
            self._trace.stop()
            report({"profile": self._trace.summary()})
        self._passes += 1


def main(argv: list[str]) -> int:
    """Train, one step traced; returns the trainer's exit code."""
    wait_for_turn()
    from internvl_chat.train.finetune import main as train

    spec = json.loads(Path(argv[0]).read_text("utf-8"))
    TracedForward(
        first=spec["first_step"] * spec["accumulation"],
        number=spec["accumulation"],
        on_gpu=spec["on_gpu"],
    )
    return train(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
