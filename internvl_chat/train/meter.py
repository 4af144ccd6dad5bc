"""What a run measures between two logs, on this rank, and its sum over all ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from internvl_chat.costs.flops import ModelFlops
from internvl_chat.machine.peaks import Precision
from internvl_chat.train.distributed import gather_over_ranks, sum_over_ranks
from internvl_chat.train.loss import (
    COUNTED,
    DatasetLosses,
    count_step,
    losses_by_name,
    num_supervised,
    sample_lengths,
)
from internvl_chat.train.metrics import StepClock, peak_flops, peak_memory_bytes, step_figures


class RunMeter:
    """Clock, counts, FLOPs and losses by dataset of a run.

    Args:
        model: an InternVLChatModel, with what trains decided.
        dataset_names: by ``dataset_id``.
        device: of this rank.
        precision: of the run's matrix products, for the device's peak.
        world_size: number of ranks; all of them call what says so.
    """

    def __init__(
        self,
        model: Any,
        *,
        dataset_names: tuple[str, ...],
        device: torch.device,
        precision: Precision,
        world_size: int,
    ) -> None:
        self.clock = StepClock()
        self.losses = DatasetLosses(len(dataset_names), device)
        self._dataset_names = dataset_names
        self._device, self._world_size = device, world_size
        self._counts = torch.zeros(len(COUNTED), dtype=torch.float64, device=device)
        self._flops = ModelFlops.of_model(model)
        self._peak_flops = peak_flops(device, precision)

    def fetch(self, batches: Iterator[Any], number: int) -> list[Any]:
        """Take so many micro batches, or as many as there are; the wait is counted."""
        start = time.perf_counter()
        fetched = [batch for _, batch in zip(range(number), batches, strict=False)]
        self.clock.add_wait(time.perf_counter() - start)
        return fetched

    def count(self, batches: list[Any], device: torch.device) -> Tensor:
        """Count a step's micro batches over all ranks; (6,) float64 as ``COUNTED``. Collective."""
        counts = sum_over_ranks(count_step(batches).to(device), self._world_size)
        self._counts += counts
        return counts

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Model FLOPs of a micro batch on this rank, which is on the CPU."""
        flags = batch.get("image_flags")
        return self._flops.of_batch(
            sample_lengths(batch),
            0 if flags is None else int(flags.sum()),
            num_supervised(batch),
        )

    def read(
        self, *, loss: Tensor, steps: int, flops: float, grad_norm: Tensor | float | None
    ) -> tuple[dict[str, float], float, float]:
        """Reduce and name the figures since the last reading: one collective.

        Args:
            loss: sum over this rank's micro batches.
            steps: optimizer steps since the last reading.
            flops: of this rank since then.
            grad_norm: of the last step.

        Returns:
            The figures, the mean over ranks of ``loss`` and the sum over ranks of ``flops``.
        """
        seconds, waited = self.clock.read()
        own = [float(loss), waited, peak_memory_bytes(self._device), flops]
        ranks = gather_over_ranks(
            torch.tensor(own, dtype=torch.float64, device=self._device), self._world_size
        )
        mean_loss = ranks[:, 0].mean().item()
        counts = dict(zip(COUNTED, self._counts.tolist(), strict=True))
        self._counts.zero_()
        figures = step_figures(
            loss=mean_loss,
            steps=steps,
            seconds=seconds,
            counts=counts,
            waited_seconds=ranks[:, 1].max().item(),
            peak_memory_bytes=ranks[:, 2].max().item(),
            flops=ranks[:, 3].mean().item(),
            peak_flops=self._peak_flops,
            grad_norm=None if grad_norm is None else float(grad_norm),
        )
        return figures, mean_loss, ranks[:, 3].sum().item()

    def read_dataset_losses(self) -> dict[str, float]:
        """Mean loss per token by dataset since the last reading, as ``loss/NAME``. Collective."""
        sums = sum_over_ranks(self.losses.drain(), self._world_size)
        by_name = losses_by_name(self._dataset_names, sums)
        return {f"loss/{name}": loss for name, loss in by_name.items()}
