"""Whether the optimizer and the schedule of a run can be made: tried on one number, not on a model.

transformers finds a missing package, or keywords that do not fit, when the weights are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import Trainer, get_scheduler

from internvl_chat.train.rates import idle_parts, is_by_part
from internvl_chat.train.trainer_arguments import TrainArguments

logger = logging.getLogger(__name__)

_STEPS = 10**6  # of the schedule that is tried: more than any run's warm-up
_INSTEAD = {"optimizer": "optim", "scheduler": "lr_scheduler_type"}
_WITHOUT_KEYWORDS = ("constant", "constant_with_warmup")


def update_problems(train: TrainArguments) -> Iterator[str]:
    """A sentence for what the trainer could not make of the arguments.

    Args:
        train: of the run; what its DeepSpeed file makes itself is left out.
    """
    config = train.deepspeed if isinstance(train.deepspeed, dict) else {}
    if is_by_part(vars(train)):
        yield from _by_part(train, config)
        for note in idle_parts(vars(train)):
            logger.warning("%s", note)
    if "optimizer" not in config:
        yield from _optimizer(train)
    if "scheduler" not in config:
        yield from _schedule(train)


def _by_part(train: TrainArguments, config: Mapping[str, Any]) -> Iterator[str]:
    """Who makes an optimizer or a schedule with one rate for all."""
    told = "Rates by part (--vision_lr, --mlp_lr, --llm_lr, --vit_layer_decay_rate)"
    for section in ("optimizer", "scheduler"):
        if section in config:
            kind = config[section].get("type", "") if isinstance(config[section], dict) else ""
            yield (
                f"{told}: the {section} of the --deepspeed file ({kind}) has one rate for all. "
                f"Remove it from the file; --{_INSTEAD[section]} takes its place."
            )
    optim = _name(train.optim)
    if optim.endswith("layerwise") or "lomo" in optim:
        yield f"{told}: --optim {optim} updates the weights in its own way, at one rate."


def _optimizer(train: TrainArguments) -> Iterator[str]:
    optim = _name(train.optim)
    try:
        kind, keywords = Trainer.get_optimizer_cls_and_kwargs(train)
    except ImportError as err:
        yield f"--optim {optim}: {err}"
        return
    except ValueError as err:
        if "model" not in str(err):  # some are made with the model only
            given = f" --optim_args {train.optim_args}" if train.optim_args else ""
            yield f"--optim {optim}{given}: {err}"
        return
    if not train.optim_args:
        return
    try:
        kind([torch.nn.Parameter(torch.zeros(1))], **keywords)
    except (TypeError, ValueError) as err:
        yield f"--optim_args {train.optim_args}: {optim} does not take that ({err})."
        return
    if keywords == _keywords_without_args(train):
        logger.warning(
            "--optim_args %s is read by nobody: %s has arguments of its own",
            train.optim_args,
            optim,
        )


def _keywords_without_args(train: TrainArguments) -> dict[str, Any]:
    told, train.optim_args = train.optim_args, None
    try:
        found: dict[str, Any] = Trainer.get_optimizer_cls_and_kwargs(train)[1]
    finally:
        train.optim_args = told
    return found


def _schedule(train: TrainArguments) -> Iterator[str]:
    kind, keywords = _name(train.lr_scheduler_type), train.lr_scheduler_kwargs or {}
    if not isinstance(keywords, dict):
        yield f"--lr_scheduler_kwargs {keywords}: want a JSON object."
        return
    if keywords and kind in _WITHOUT_KEYWORDS:
        yield f"--lr_scheduler_kwargs {keywords}: {kind} takes none."
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.learning_rate)
    try:
        get_scheduler(
            train.lr_scheduler_type,
            optimizer,
            num_warmup_steps=0,
            num_training_steps=_STEPS,
            scheduler_specific_kwargs=keywords,
        )
    except (TypeError, ValueError) as err:
        told = "--lr_scheduler_kwargs" + (f" {keywords}" if keywords else " is missing something")
        yield f"{told}: --lr_scheduler_type {kind} says: {err}."


def _name(choice: Any) -> str:
    return str(getattr(choice, "value", choice))
