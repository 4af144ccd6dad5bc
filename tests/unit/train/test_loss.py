"""Denominators and the loss by dataset, on batches written out by hand."""

from __future__ import annotations

import torch

from internvl_chat.train.loss import COUNTED, DatasetLosses, count_step, dataset_of_targets

I = -100  # noqa: E741 - reads like the table it stands in


def padded() -> dict[str, torch.Tensor]:
    """Three rows: 2 targets, 1 target, and a padding sample without any."""
    labels = torch.tensor([[I, I, 5, 6], [I, 7, I, I], [I, I, I, I]])
    return {
        "labels": labels,
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
        "loss_weight": torch.tensor([[0, 0, 0.5, 0.5], [0, 1.0, 0, 0], [0, 0, 0, 0]]),
        "image_flags": torch.tensor([1, 1]),
        "dataset_ids": torch.tensor([4, 9, 4]),
    }


def packed() -> dict[str, torch.Tensor]:
    """The same samples in one row, padding gone."""
    return {
        "labels": torch.tensor([[I, I, 5, 6, I, 7, I, I, I]]),
        "loss_weight": torch.tensor([[0, 0, 0.5, 0.5, 0, 1.0, 0, 0, 0]]),
        "image_flags": torch.tensor([1, 1]),
        "dataset_ids": torch.tensor([4, 9, 4]),
        "cu_seq_lens_q": torch.tensor([0, 4, 7, 9], dtype=torch.int32),
    }


def test_counts() -> None:
    assert dict(zip(COUNTED, count_step([padded()]).tolist(), strict=True)) == {
        "weight": 2.0,
        "supervised": 3.0,
        "tokens": 9.0,
        "positions": 12.0,
        "samples": 2.0,
        "tiles": 2.0,
    }
    assert count_step([packed()]).tolist() == [2.0, 3.0, 9.0, 9.0, 2.0, 2.0]
    assert count_step([padded(), packed()])[0] == 4.0
    assert count_step([]).tolist() == [0.0] * 6


def test_a_label_at_the_start_of_a_row_is_no_target() -> None:
    batch = padded()
    batch["labels"][2, 0] = 3
    batch["loss_weight"][2, 0] = 1.0
    assert count_step([batch])[:2].tolist() == [2.0, 3.0]


def test_dataset_of_each_target() -> None:
    assert dataset_of_targets(padded()).tolist() == [4, 4, 9]
    assert dataset_of_targets(packed()).tolist() == [4, 4, 9]


def test_running_losses_by_dataset() -> None:
    losses = DatasetLosses(3, torch.device("cpu"))
    losses.add(torch.tensor([0, 2, 2]), torch.tensor([1.0, 2.0, 4.0]))
    losses.add(torch.tensor([2]), torch.tensor([0.5]))
    assert losses.drain().tolist() == [[1.0, 0.0, 6.5], [1.0, 0.0, 3.0]]
    assert losses.drain().sum() == 0
