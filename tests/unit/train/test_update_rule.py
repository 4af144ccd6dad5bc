"""Optimizers and schedules that cannot be made are told before a weight is read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from internvl_chat.train import update_rule
from internvl_chat.train.trainer_arguments import TrainArguments
from internvl_chat.train.update_rule import update_problems
from internvl_chat.train.zero import zero_config


def problems(tmp_path: Path, **arguments: Any) -> list[str]:
    train = TrainArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, **arguments)
    return list(update_problems(train))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"lr_scheduler_kwargs": {"bogus": 1}}, "'bogus': 1}: --lr_scheduler_type linear says"),
        ({"lr_scheduler_kwargs": "abc"}, "--lr_scheduler_kwargs abc: want a JSON object"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "is missing something: --lr_scheduler_type"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}},
            "must be smaller than initial lr",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}},
            "constant takes none",
        ),
        (
            {"optim": "ademamix", "optim_args": "beta3=x"},
            "--optim ademamix --optim_args beta3=x: could not convert",
        ),
    ],
)
def test_what_the_trainer_could_not_make(
    tmp_path: Path, arguments: dict[str, Any], told: str
) -> None:
    (problem,) = problems(tmp_path, **arguments)
    assert told in problem


def test_an_optimizer_whose_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(args: object) -> None:
        raise ImportError("You need to install `lomo_optim`")

    monkeypatch.setattr(update_rule.Trainer, "get_optimizer_cls_and_kwargs", missing)
    assert problems(tmp_path, optim="lomo") == ["--optim lomo: You need to install `lomo_optim`"]


def test_arguments_that_say_nothing_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert problems(tmp_path, optim="adamw_torch", optim_args="bogus=1") == []
    assert "--optim_args bogus=1 is read by nobody: adamw_torch has" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"optim": "adafactor"},
        {"optim": "sgd", "lr_scheduler_type": "inverse_sqrt"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
        {"lr_scheduler_type": "constant", "learning_rate": 0.0},
    ],
)
def test_what_can_be_made(tmp_path: Path, arguments: dict[str, Any]) -> None:
    assert problems(tmp_path, **arguments) == []


@pytest.mark.parametrize("zero", [None, "zero1", "zero3"])
def test_adamw_is_the_fused_one_unless_told_otherwise(tmp_path: Path, zero: str | None) -> None:
    """Of torch, and under ZeRO as well: a DeepSpeed file's Adam gives way to it."""
    train = TrainArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    values = {**vars(train), "grad_checkpoint": True}
    config = zero_config(zero, values, torch.device("cpu"))
    assert config is None or "optimizer" not in config
    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(train)
    assert kind is torch.optim.AdamW
    assert keywords["fused"] is True


def test_fused_adamw_is_the_same_sum() -> None:
    torch.manual_seed(0)
    start, steps = torch.randn(50, 70), torch.randn(20, 50, 70)
    found = []
    for fused in (False, True):
        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.05, fused=fused)
        for gradient in steps:
            weight.grad = gradient.clone()
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
