"""A trainable group that gets no gradient stops the run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from internvl_chat.errors import ConfigError
from internvl_chat.train.unused_parameters import UnusedParameterCheck

CPU = torch.device("cpu")


class Model(nn.Module):
    """Two groups by name; the vision tower enters only if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = nn.Linear(2, 2)
        self.mlp1 = nn.Linear(2, 2)

    def forward(self, *, images: bool, cut: bool = False) -> torch.Tensor:
        seen = self.vision_model(torch.ones(1, 2))
        if not images:
            seen = seen * 0
        return (self.mlp1(torch.ones(1, 2)) + (seen.detach() if cut else seen)).sum()


def step(model: Model, watch: UnusedParameterCheck, number: int, **options: bool) -> None:
    watch.expect_images(options["images"])
    model(**options).backward()
    watch.check(number, 1, CPU)


def test_every_group_confirmed() -> None:
    model = Model()
    watch = UnusedParameterCheck(model)
    watch.attach()
    step(model, watch, 1, images=True)
    assert not watch.active


def test_cut_off_group_is_named() -> None:
    model = Model()
    watch = UnusedParameterCheck(model)
    watch.attach()
    with pytest.raises(ConfigError, match="no gradient reached vision_model in step 1"):
        step(model, watch, 1, images=True, cut=True)


def test_images_come_later() -> None:
    model = Model()
    watch = UnusedParameterCheck(model)
    watch.attach()
    model.mlp1.requires_grad_(True)
    step(model, watch, 1, images=False)
    assert watch.active
    step(model, watch, 2, images=True)
    assert not watch.active


def test_frozen_groups_and_resumed_runs_are_not_watched() -> None:
    model = Model()
    model.vision_model.requires_grad_(False)
    watch = UnusedParameterCheck(model)
    watch.attach()
    step(model, watch, 1, images=True, cut=True)
    assert not watch.active
    resumed = UnusedParameterCheck(model)
    resumed.attach(resumed=True)
    assert not resumed.active
