"""What a run shows while it goes: a progress bar, one line a step, TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

GROUPS = {
    "loss": "train",
    "learning_rate": "update",
    "grad_norm": "update",
    "epoch": "update",
}
"""TensorBoard group of a figure, where it is not ``usage`` (time, memory, padding).

TensorBoard sorts groups and the figures in them by name: with these, ``eval/loss`` and
``train/loss`` come first."""

_SUMMARY = "train_runtime"
"""Marks the log at the end of a run, which is no point of a curve: it is in train_results.json."""

LOSSES = {"loss", "eval_loss"}
"""Names that make a log worth a line; the summary at the end has none of them."""

LINE = (
    ("loss", "loss {:.4f}"),
    ("learning_rate", "lr {:.3g}"),
    ("grad_norm", "grad {:.3g}"),
    ("tokens_per_second", "{:.0f} tok/s"),
    ("samples_per_second", "{:.2f} samples/s"),
    ("padding_share", "pad {:.1%}"),
    ("vit_imbalance", "ViT x{:.2f}"),
    ("llm_imbalance", "LLM x{:.2f}"),
    ("data_wait_share", "wait {:.1%}"),
    ("step_seconds", "{:.2f} s/step"),
    ("peak_memory_gib", "peak {:.2f} GiB"),
    ("mfu", "mfu {:.1%}"),
)


def tag_of(name: str) -> str:
    """Name of a logged figure in TensorBoard: ``train/loss``, ``usage/tokens_per_second``, ..."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    return f"{GROUPS.get(name.split('/')[0], 'usage')}/{name}"


def is_summary(logs: Mapping[str, Any] | None) -> bool:
    """Whether it is the log at a run's end."""
    return _SUMMARY in (logs or {})


def tagged(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures of a log, by their names in TensorBoard and every other tracker."""
    return {tag_of(n): v for n, v in (logs or {}).items() if isinstance(v, (int, float))}


def format_step(step: int, total: int, logs: Mapping[str, float]) -> str:
    """One line about a step; figures that were not measured are left out."""
    shown = [text.format(logs[name]) for name, text in LINE if name in logs]
    rates = [
        f"lr/{name.partition('/')[2]} {value:.3g}"
        for name, value in logs.items()
        if name.startswith("learning_rate/")
    ]
    others = [f"{name} {value:.4f}" for name, value in logs.items() if "loss/" in name]
    if "eval_loss" in logs:
        others.insert(0, f"eval_loss {logs['eval_loss']:.4f}")
    return f"step {step}/{total}  {'  '.join(shown + rates + others)}"


class RunProgress(TrainerCallback):
    """Progress bar and a line per log, on rank 0 only."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step the run starts from."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                dynamic_ncols=True,
                unit="step",
                # Into a file, a bar every second would be most of the log.
                mininterval=0.5 if sys.stderr.isatty() else 30,
                disable=args.disable_tqdm,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line above the bar."""
        if self._bar is not None and logs and LOSSES & {n.split("/")[0] for n in logs}:
            self._bar.write(format_step(state.global_step, state.max_steps, logs), file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """End the bar's line, also where the run stops in the middle."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TensorBoardWriter(TrainerCallback):
    """Figures by group, the arguments as text, training samples as images with their text.

    A run that goes on writes into the folder that it began with: one curve, from which the steps
    after the checkpoint, which are trained again, are taken out.
    """

    def __init__(
        self,
        directory: Path,
        *,
        arguments: Mapping[str, Any],
        samples: Sequence[tuple[np.ndarray | None, str]],
    ) -> None:
        """``samples`` are (H, W, 3) uint8 images (None without one) and what is trained."""
        self._directory = directory
        self._arguments = arguments
        self._samples = samples
        self._writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the file and write what stands before the first step."""
        if not state.is_world_process_zero:
            return
        from torch.utils.tensorboard import SummaryWriter

        done = state.global_step
        is_begun = done > 0 and self._directory.is_dir()
        # purge_step: what an earlier start wrote from there on is superseded.
        self._writer = SummaryWriter(str(self._directory), purge_step=done + 1 if done else None)
        text = json.dumps(self._arguments, indent=2, ensure_ascii=False, default=str)
        self._writer.add_text("arguments", "    " + text.replace("\n", "\n    "), done)
        for number, (image, trained) in enumerate([] if is_begun else self._samples):
            if image is not None:
                self._writer.add_image(f"samples/{number}", image, dataformats="HWC")
            self._writer.add_text(f"samples/{number}", "    " + trained.replace("\n", "\n    "))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the figures of a step."""
        if self._writer is None or is_summary(logs):
            return
        for tag, value in tagged(logs).items():
            self._writer.add_scalar(tag, value, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Flush and close."""
        self.close()

    def close(self) -> None:
        """Write what is waiting, also where the run stops in the middle."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def tensorboard_folder(parent: Path, known: str | None, *, takes_newest: bool) -> str:
    """Name of the folder of a run's curve, below ``--logging_dir`` or ``OUTPUT_DIR/runs``.

    Args:
        parent: that folders of curves lie in.
        known: of the run that is continued, as ``arguments.json`` tells it.
        takes_newest: where it does not tell, as those of earlier versions, the newest is taken.
    """
    if known is not None and Path(known).name == known and (parent / known).is_dir():
        return known
    if known is None and takes_newest and parent.is_dir():
        found = sorted(path.name for path in parent.iterdir() if path.is_dir())
        if found:
            return found[-1]
    return time.strftime("%Y%m%d-%H%M%S")
