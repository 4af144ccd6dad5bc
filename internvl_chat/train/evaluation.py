"""Loss of held-out records, mean per supervised token, all and by dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from internvl_chat.train.inputs import with_dummy_image
from internvl_chat.train.loss import DatasetLosses, losses_by_name


def held_out_losses(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    *,
    num_datasets: int,
    image_size: int,
    device: torch.device,
    forward: Callable[[dict[str, Any], DatasetLosses], None],
) -> Tensor:
    """Run the model over this rank's held-out micro batches.

    Every rank must have the same number of them (padding samples without labels fill up), and a
    micro batch without images brings a dummy image, so that under ZeRO-3 all ranks run the same
    modules.

    Args:
        model: put into evaluation mode meanwhile.
        batches: collated micro batches.
        num_datasets: that the batches' ``dataset_ids`` count.
        image_size: side of a tile in pixels.
        device: for the sums.
        forward: runs the model on a micro batch and adds its losses.

    Returns:
        (2, num_datasets) float64: sums of losses and numbers of supervised tokens.
    """
    losses = DatasetLosses(num_datasets, device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            forward(with_dummy_image(batch, image_size), losses)
    model.train(was_training)
    return losses.drain()


def held_out_metrics(names: tuple[str, ...], sums: Tensor, prefix: str) -> dict[str, float]:
    """Name the losses.

    Args:
        names: of the datasets.
        sums: (2, datasets) over all ranks, from :func:`held_out_losses`.
        prefix: ``eval``.
    """
    by_name = losses_by_name(names, sums)
    return {
        f"{prefix}_loss": (sums[0].sum() / sums[1].sum().clamp(min=1)).item(),
        **{f"{prefix}_loss/{name}": loss for name, loss in by_name.items()},
    }
