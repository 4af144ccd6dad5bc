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
    num_tiles,
    sample_lengths,
    sequence_lengths,
)
from internvl_chat.train.metrics import (
    StepClock,
    imbalance,
    peak_flops,
    peak_memory_bytes,
    step_figures,
)


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
        # Slowest rank and mean over ranks, of vision and text, summed over micro batches.
        self._work = torch.zeros(2, 2, dtype=torch.float64, device=device)
        self._flops = ModelFlops.of_model(model)
        self._rates = self._flops.work(recompute=_recomputes(model))
        self._dummy_tiles = int(model.needs_dummy_tile(training=True))
        self._peak_flops = peak_flops(device, precision)

    def fetch(self, batches: Iterator[Any], number: int) -> list[Any]:
        """Take so many micro batches, or as many as there are; the wait is counted."""
        start = time.perf_counter()
        fetched = [batch for _, batch in zip(range(number), batches, strict=False)]
        self.clock.add_wait(time.perf_counter() - start)
        return fetched

    def count(self, batches: list[Any], device: torch.device) -> Tensor:
        """Count a step's micro batches over all ranks; (6,) float64 as ``COUNTED``. Collective.

        All ranks have as many micro batches.
        """
        work = torch.tensor([self._executed(batch) for batch in batches], dtype=torch.float64)
        own = torch.cat([count_step(batches), work.flatten()])
        ranks = gather_over_ranks(own.to(device), self._world_size)
        counts = ranks[:, : len(COUNTED)].sum(dim=0)
        by_micro_batch = ranks[:, len(COUNTED) :].view(self._world_size, len(batches), 2)
        self._counts += counts
        self._work[0] += by_micro_batch.amax(dim=0).sum(dim=0)
        self._work[1] += by_micro_batch.mean(dim=0).sum(dim=0)
        return counts

    def _executed(self, batch: Mapping[str, Any]) -> tuple[float, float]:
        """FLOPs of vision and text that a micro batch costs this device, padding included."""
        tiles = num_tiles(batch) or self._dummy_tiles
        text = self._rates.text(sequence_lengths(batch)).sum()
        return float(self._rates.vision(tiles)), float(text)

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Model FLOPs of a micro batch on this rank, which is on the CPU."""
        return self._flops.of_batch(sample_lengths(batch), num_tiles(batch), num_supervised(batch))

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
        slowest, mean = self._work.tolist()
        self._counts.zero_()
        self._work.zero_()
        figures = step_figures(
            loss=mean_loss,
            steps=steps,
            seconds=seconds,
            counts=counts,
            vit_imbalance=imbalance(slowest[0], mean[0]),
            llm_imbalance=imbalance(slowest[1], mean[1]),
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


def _recomputes(model: Any) -> bool:
    """Whether blocks are computed again in backward."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
