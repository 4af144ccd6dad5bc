"""The line of a step and the names in TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from internvl_chat.train.callbacks import TensorBoardWriter, format_step, tag_of


def test_line_of_a_step() -> None:
    logs = {
        "loss": 1.23456,
        "learning_rate": 1e-5,
        "grad_norm": 0.5,
        "tokens_per_second": 1234.5,
        "padding_share": 0.034,
        "epoch": 0.1,
    }
    assert format_step(3, 10, logs) == (
        "step 3/10  loss 1.2346  lr 1e-05  grad 0.5  1234 tok/s  pad 3.4%"
    )
    assert format_step(50, 100, {"loss/docvqa": 2.0}) == "step 50/100  loss/docvqa 2.0000"


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "train/loss"),
        ("tokens_per_second", "data/tokens_per_second"),
        ("loss/chartqa", "train/loss/chartqa"),
        ("eval_loss", "eval/loss"),
    ],
)
def test_tags(name: str, tag: str) -> None:
    assert tag_of(name) == tag


def test_tensorboard_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = np.zeros((8, 8, 3), dtype=np.uint8)
    writer = TensorBoardWriter(
        tmp_path, arguments={"learning_rate": 1e-5}, samples=[(image, "red"), (None, "text")]
    )
    args = TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True)
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    writer.on_train_begin(args, state, control)
    state.global_step = 4
    writer.on_log(args, state, control, logs={"loss": 2.5, "tokens_per_second": 10})
    writer.on_train_end(args, state, control)

    events = EventAccumulator(str(next(tmp_path.glob("2*"))))
    events.Reload()
    assert events.Scalars("train/loss")[0].step == 4
    assert events.Scalars("train/loss")[0].value == 2.5
    tags = events.Tags()
    assert tags["images"] == ["samples/0"]
    assert {"arguments/text_summary", "samples/1/text_summary"} <= set(tags["tensors"])
