"""The datasets of a run as they are told before the first step: records, held out, samples."""

from __future__ import annotations

from typing import Any

from internvl_chat.data.mixture import Mixture


def dataset_table(train: Mixture, *, is_split: bool) -> list[str]:
    """A line for each dataset that is trained on, and one for all of several.

    Args:
        train: the mixture.
        is_split: a part of it is held out.
    """
    parts = zip(train.specs, train.files, train.parts, train.num_samples, strict=True)
    rows = [
        (spec.name, _of(len(file), file.num_in_file), len(part.held_out), samples)
        for spec, file, part, samples in parts
    ]
    if len(rows) > 1:
        counted = sum(map(len, train.files))
        in_files = sum(file.num_in_file for file in train.files)
        rows.append(("all", _of(counted, in_files), sum(row[2] for row in rows), len(train)))
    names = max(len(name) for name, *_ in rows)
    records = max(len(told) for _, told, *_ in rows)
    return [
        f"{name:<{names}}  {counted:>{records}} records"
        + (f"  held out {held_out or 'none':>9}" if is_split else "")
        + f"  {samples:>12,} samples an epoch"
        for name, counted, held_out, samples in rows
    ]


def _when(args: Any) -> str:
    if args.eval_strategy == "epoch":
        return "after each epoch"
    if args.eval_steps < 1:
        return f"every {args.eval_steps:.1%} of the steps and in the end"
    every = "step" if args.eval_steps == 1 else f"{args.eval_steps:g} steps"
    return f"every {every} and in the end"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _of(number: int, total: int) -> str:
    return f"{number:,}" if number == total else f"{number:,} of {total:,}"


def validation_line(args: Any, evaluation: Mixture) -> str:
    """What is asked when, and what follows from it.

    Args:
        args: ``TrainArguments``.
        evaluation: the held-out records.
    """
    records, datasets = (
        _number(len(evaluation), "record"),
        _number(len(evaluation.specs), "dataset"),
    )
    text = f"validation: {records} of {datasets}, {_when(args)}"
    if args.early_stopping_patience is not None:
        text += f"; stops after {args.early_stopping_patience} that are no better"
    if args.load_best_model_at_end:
        text += f"; the checkpoint with the best {args.metric_for_best_model} is the result"
    return text
