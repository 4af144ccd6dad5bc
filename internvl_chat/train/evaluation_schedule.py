"""When held-out records are asked, and what follows from that: defaults, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from internvl_chat.config import VAL_SPLIT_SEED
from internvl_chat.train.early_stopping import HELD_OUT_LOSS

HELD_OUT_FLAGS: Final = "--val_split 0.02 or --eval_meta_path"


def has_held_out_data(values: Mapping[str, Any]) -> bool:
    """Whether a run validates."""
    return bool(values["eval_meta_path"] or values["val_split"])


def with_evaluation(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with what follows from held-out data filled in.

    Without ``--eval_strategy`` or ``--eval_steps`` records are asked with every checkpoint, or,
    where none is written at fixed steps, after each epoch. Early stopping chooses the best
    checkpoint, unless it is told not to or none is written; and where one is chosen, checkpoints
    are written with the evaluations.

    Args:
        values: all arguments by name.
        given: those that the command line or a file said.
    """
    found = dict(values)
    if not has_held_out_data(values):
        return found
    saves_steps = found["save_strategy"] == "steps"
    if found["eval_strategy"] == "no":
        by_steps = found["eval_steps"] is not None or saves_steps
        found["eval_strategy"] = "steps" if by_steps else "epoch"
    if found["early_stopping_patience"] is not None:
        found["metric_for_best_model"] = found["metric_for_best_model"] or HELD_OUT_LOSS
        if "load_best_model_at_end" not in given:
            found["load_best_model_at_end"] = found["save_strategy"] != "no"
    if found["metric_for_best_model"] and found["greater_is_better"] is None:
        found["greater_is_better"] = False  # a loss, which transformers sees in "loss" alone
    if found["load_best_model_at_end"]:
        if found["eval_strategy"] == "epoch" and not {"save_strategy", "save_steps"} & set(given):
            found["save_strategy"] = "epoch"
        if found["eval_steps"] and "save_steps" not in given:
            found["save_steps"] = found["eval_steps"]
    if found["eval_strategy"] == "steps" and found["eval_steps"] is None:
        found["eval_steps"] = found["save_steps"]
    return found


def evaluation_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each contradiction.

    Args:
        values: of :func:`with_evaluation`.
    """
    if values["eval_meta_path"] and values["val_split"]:
        yield (
            "--val_split and --eval_meta_path: held-out records come from the one or the other. "
            "Drop one."
        )
    if not has_held_out_data(values):
        yield from _without_data(values)
    elif values["save_strategy"] == "best" and not values["metric_for_best_model"]:
        yield "--save_strategy best needs --metric_for_best_model eval_loss."
    if values["load_best_model_at_end"]:
        yield from _choosing(values)
    if values["val_split_seed"] != VAL_SPLIT_SEED and not values["val_split"]:
        yield f"--val_split_seed {values['val_split_seed']} has no effect without --val_split."
    if values["eval_steps"] is not None and values["eval_steps"] <= 0:
        yield f"--eval_steps {values['eval_steps']:g}: want a number > 0."
    if values["greater_is_better"]:
        yield "--greater_is_better True: all figures of validation are losses. Drop it."
    yield from _early_stopping(values)


def _choosing(values: Mapping[str, Any]) -> Iterator[str]:
    """What does not go with the best checkpoint as the result."""
    saves, evaluates = values["save_strategy"], values["eval_strategy"]
    if saves == "no":
        yield (
            "--load_best_model_at_end needs checkpoints, and --save_strategy no writes none. "
            "Give steps, epoch or best."
        )
    elif saves != "best" and saves != evaluates and evaluates != "no":
        yield (
            f"--save_strategy {saves} with --eval_strategy {evaluates}: the best checkpoint is "
            f"chosen among those that are evaluated. Give {evaluates} for both, or "
            "--load_best_model_at_end False."
        )
    every, saved = values["eval_steps"], values["save_steps"]
    if saves == evaluates == "steps" and every >= 1 and saved % every:
        yield (
            f"--save_steps {saved:g} is no multiple of --eval_steps {every:g}: the best checkpoint "
            f"is chosen among those that are evaluated. Try {max(saved // every, 1) * every:g}."
        )
    if values["save_only_model"]:
        yield (
            "--load_best_model_at_end needs what --save_only_model leaves out of checkpoints. "
            "Drop one; --save_total_limit 2 keeps the best and the last one."
        )


def _without_data(values: Mapping[str, Any]) -> Iterator[str]:
    if values["eval_strategy"] != "no":
        yield (
            f"--eval_strategy {values['eval_strategy']} without {HELD_OUT_FLAGS}: no records to "
            "ask."
        )
    if values["save_strategy"] == "best":
        yield (
            "--save_strategy best needs held-out records and --metric_for_best_model eval_loss: "
            f"give {HELD_OUT_FLAGS}."
        )
    wanted = {
        "--early_stopping_patience": values["early_stopping_patience"] is not None,
        "--load_best_model_at_end": values["load_best_model_at_end"],
    }
    for flag, is_given in wanted.items():
        if is_given:
            yield f"{flag} needs held-out records: give {HELD_OUT_FLAGS}."


def _early_stopping(values: Mapping[str, Any]) -> Iterator[str]:
    patience, threshold = values["early_stopping_patience"], values["early_stopping_threshold"]
    if patience is not None and patience < 1:
        yield f"--early_stopping_patience {patience}: want a number of evaluations >= 1."
    if not 0 <= threshold < math.inf:
        yield f"--early_stopping_threshold {threshold}: want a number >= 0."
    elif threshold and patience is None:
        yield "--early_stopping_threshold has no effect without --early_stopping_patience."
