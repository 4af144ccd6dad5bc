"""What a micro batch costs, and how evenly the ranks share a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from internvl_chat import InternVLChatModel
from internvl_chat.costs.flops import ModelFlops
from internvl_chat.train import meter as module
from internvl_chat.train.loss import COUNTED
from internvl_chat.train.meter import RunMeter
from tests.support.models import make_model

CPU = torch.device("cpu")


def make_meter(model: InternVLChatModel, world_size: int = 1) -> RunMeter:
    return RunMeter(
        model, dataset_names=("a",), device=CPU, precision="fp32", world_size=world_size
    )


def padded(*lengths: int, tiles: int = 0) -> dict[str, Any]:
    """Rows of so many tokens, the last two of each supervised."""
    width = max(lengths)
    columns = torch.arange(width)
    ends = torch.tensor(lengths)[:, None]
    labels = torch.full((len(lengths), width), -100)
    labels[(columns < ends) & (columns >= ends - 2)] = 7
    batch = {
        "labels": labels,
        "attention_mask": (columns < ends).long(),
        "loss_weight": (labels != -100).float(),
        "dataset_ids": torch.zeros(len(lengths), dtype=torch.long),
    }
    return batch | ({"image_flags": torch.ones(tiles, dtype=torch.long)} if tiles else {})


def packed(*lengths: int, tiles: int = 0) -> dict[str, Any]:
    rows = padded(*lengths, tiles=tiles)
    kept = rows.pop("attention_mask").bool()
    borders = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        **rows,
        "labels": rows["labels"][kept][None],
        "loss_weight": rows["loss_weight"][kept][None],
        "cu_seq_lens_q": borders,
    }


def test_model_flops_know_neither_padding_nor_dummy_tiles() -> None:
    model = make_model()
    meter, flops = make_meter(model), ModelFlops.of_model(model)
    assert meter.flops(padded(9, 4, tiles=3)) == flops.of_batch([9, 4], 3, 4)
    assert meter.flops(packed(9, 4, tiles=3)) == flops.of_batch([9, 4], 3, 4)
    assert meter.flops(padded(6)) == flops.of_batch([6], 0, 2)
    flagged = padded(6, tiles=3)
    flagged["image_flags"][1] = 0  # a dummy among real ones
    assert meter.flops(flagged) == flops.of_batch([6], 2, 2)


def test_imbalance_is_of_micro_batches_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    rates = ModelFlops.of_model(model).work(recompute=False)
    others: list[Tensor] = []

    def gathered(values: Tensor, world_size: int) -> Tensor:
        """This rank's values, and those of another one."""
        assert world_size == 2
        return torch.stack([values, others.pop(0) if others else values])

    monkeypatch.setattr(module, "gather_over_ranks", gathered)
    meter = make_meter(model, world_size=2)
    # Rows of 9 positions, two of them; then 4 and 5 tokens in one pack, and a dummy tile.
    first, second = 2 * rates.text(9), rates.text(4) + rates.text(5)
    one, three = rates.vision(1), rates.vision(3)
    counts = torch.ones(len(COUNTED), dtype=torch.float64)
    others.append(torch.cat([counts, torch.tensor([one, 2 * first, three, second / 2])]))
    sums = meter.count([padded(9, 4, tiles=2), packed(4, 5)], CPU)
    assert dict(zip(COUNTED, sums.tolist(), strict=True)) == {
        "weight": 9,
        "supervised": 9,
        "tokens": 23,
        "positions": 28,
        "samples": 5,
        "tiles": 3,
    }
    figures, *_ = meter.read(loss=torch.tensor(1.0), steps=1, flops=0.0, grad_norm=None)
    # 2 tiles against 1, then 1 against 3: 5 where 3.5 were fair.
    assert figures["vit_imbalance"] == pytest.approx(5 / 3.5)
    fair = 1.5 * first + 0.75 * second
    assert figures["llm_imbalance"] == pytest.approx((2 * first + second) / fair)
    assert figures["padding_share"] == pytest.approx(5 / 28)
    # The next log knows nothing of it.
    meter.count([padded(9, 4, tiles=2)], CPU)
    figures, *_ = meter.read(loss=torch.tensor(1.0), steps=1, flops=0.0, grad_norm=None)
    assert (figures["vit_imbalance"], figures["llm_imbalance"]) == (1.0, 1.0)


def test_without_images_there_is_nothing_to_share() -> None:
    model = make_model()
    model.vision_model.requires_grad_(False)
    model.mlp1.requires_grad_(False)
    meter = make_meter(model)  # no dummy tile either: nothing there trains
    meter.count([padded(9, 4)], CPU)
    figures, *_ = meter.read(loss=torch.tensor(1.0), steps=1, flops=0.0, grad_norm=None)
    assert figures["vit_imbalance"] == 1.0
