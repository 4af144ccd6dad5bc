"""DeepSpeed's CPU accelerator without kernels that must be compiled first.

DeepSpeed builds a C++ extension for reductions through shared memory when its communication starts:
minutes on a busy machine, an error on one without a compiler, and a wait without end behind the
lock of a build that was killed. gloo does the same work.
"""

from __future__ import annotations

from typing import Any

from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator


class PlainCpuAccelerator(CPU_Accelerator):
    """The CPU accelerator, communicating through gloo alone."""

    def create_op_builder(self, op_name: str) -> Any:
        """Builder of an extension; None for the shared-memory reductions."""
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


def use_plain_cpu_accelerator() -> None:
    """Make DeepSpeed use it; before its communication is initialised."""
    set_accelerator(PlainCpuAccelerator())
