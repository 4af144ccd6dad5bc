"""DeepSpeed's accelerators with one answer each that suits training here."""

from __future__ import annotations

from typing import Any

from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator


class PlainCpuAccelerator(CPU_Accelerator):
    """The CPU accelerator, communicating through gloo alone.

    DeepSpeed builds a C++ extension for reductions through shared memory when its communication
    starts: minutes on a busy machine, an error on one without a compiler, and a wait without end
    behind the lock of a build that was killed. gloo does the same work.
    """

    def create_op_builder(self, op_name: str) -> Any:
        """Builder of an extension; None for the shared-memory reductions."""
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


class SingleNormAccelerator(CUDA_Accelerator):
    """The GPU, on which norms of gradients are computed in fp32.

    DeepSpeed makes fp64 of every gradient for its norm where the hardware has it: 18 bytes of
    memory traffic for a value of 2, in fp32 10. Its kernel's sums in fp32, of parts and of their
    sums, are exact to 1e-6.
    """

    def is_fp64_supported(self) -> bool:
        """What decides the dtype of DeepSpeed's gradient norms."""
        return False


def use_own_accelerator(device_type: str) -> None:
    """Make DeepSpeed use them; before its communication is initialised."""
    if device_type == "cpu":
        set_accelerator(PlainCpuAccelerator())
    elif device_type == "cuda":
        set_accelerator(SingleNormAccelerator())
