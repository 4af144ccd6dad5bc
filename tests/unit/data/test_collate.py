from __future__ import annotations

from typing import Any

import pytest
import torch

from internvl_chat.data.collate import Collator, loss_weights
from internvl_chat.data.dataset import Example
from internvl_chat.errors import ConfigError


def example(
    ids: list[int], labels: list[int], *, tiles: int = 0, index: int = 0, **changes: Any
) -> Example:
    pixels = torch.full((tiles, 3, 2, 2), index, dtype=torch.uint8) if tiles else None
    values: dict[str, Any] = {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "pixel_values": pixels,
        "num_tiles": (tiles,) if tiles else (),
        "dataset_id": index % 2,
        "sample_index": index,
        "where": "a:1",
        "truncated": False,
        **changes,
    }
    return Example(**values)


PACKS = [
    [example([1, 2, 3], [-100, 2, 3], tiles=1, index=4), example([5], [5], index=5)],
    [example([7, 8, 9, 7, 8], [-100, -100, -100, -100, 8], tiles=2, index=7)],
]


def test_padded() -> None:
    batch = Collator(pad_token_id=0)(PACKS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0], [5, 0, 0, 0, 0], [7, 8, 9, 7, 8]]
    assert batch["labels"].tolist() == [
        [-100, 2, 3, -100, -100],
        [-100] * 5,
        [-100, -100, -100, -100, 8],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2, 2], [0] * 5, [0, 1, 2, 3, 4]]
    assert batch["loss_weight"].tolist() == [[0, 1, 1, 0, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [4, 7, 7]
    assert batch["image_flags"].tolist() == [1, 1, 1]
    assert batch["sample_ids"].tolist() == [4, 5, 7]
    assert batch["dataset_ids"].tolist() == [0, 1, 1]
    assert batch["pixel_values"].dtype == torch.uint8


def test_packed() -> None:
    batch = Collator(pad_token_id=0, packed=True)(PACKS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 5, 7, 8, 9, 7, 8]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, -100, -100, -100, -100, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 4, 9]
    assert batch["cu_seq_lens_k"].tolist() == [0, 3, 4, 9]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert (batch["max_length_q"], batch["max_length_k"]) == (5, 5)
    assert "attention_mask" not in batch
    assert batch["sample_ids"].tolist() == [4, 5, 7]


def test_text_only_batches_bring_no_pixels() -> None:
    batch = Collator(pad_token_id=0)([[example([1, 2], [-100, 2])]])
    assert "pixel_values" not in batch
    assert "image_flags" not in batch


def test_fillers_teach_nothing() -> None:
    padding = example([1, 2, 3], [-100, 2, 3], tiles=1, padding=True)
    batch = Collator(pad_token_id=0)([[padding]])
    assert batch["labels"].tolist() == [[-100, -100, -100]]
    assert batch["loss_weight"].tolist() == [[0, 0, 0]]
    assert len(batch["pixel_values"]) == 1


def test_examples_are_left_unchanged() -> None:
    one = example([5, 6], [5, 6])
    Collator(pad_token_id=0)([[one]])
    assert one.labels.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("reduction", "weight"), [("token", 1.0), ("sample", 0.25), ("square", 0.5)]
)
def test_loss_weights(reduction: Any, weight: float) -> None:
    labels = torch.tensor([-100, 1, 2, 3, 4])
    assert loss_weights(labels, reduction).tolist() == [0.0, *[weight] * 4]
    assert loss_weights(torch.tensor([-100]), reduction).tolist() == [0.0]
    packed = Collator(pad_token_id=0, packed=True, loss_reduction=reduction)
    batch = packed([[example([9, 1, 2, 3, 4], labels.tolist()), example([9, 1], [-100, 1])]])
    assert batch["loss_weight"].tolist() == [[0.0, *[weight] * 4, 0.0, 1.0]]


def test_rows_rounded_up() -> None:
    batch = Collator(pad_token_id=0, row_multiple=4)(PACKS)
    assert batch["input_ids"].shape == (3, 8)


def test_an_unknown_reduction() -> None:
    with pytest.raises(ConfigError, match=r"loss_reduction is 'mean'\. Use one of token, sample"):
        Collator(pad_token_id=0, loss_reduction="mean")  # type: ignore[arg-type]
