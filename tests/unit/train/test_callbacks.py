"""The line of a step and the names in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from internvl_chat.train.callbacks import (
    TensorBoardWriter,
    format_step,
    tag_of,
    tensorboard_folder,
)


def test_line_of_a_step() -> None:
    logs = {
        "loss": 1.23456,
        "learning_rate": 1e-5,
        "grad_norm": 0.5,
        "tokens_per_second": 1234.5,
        "padding_share": 0.034,
        "vit_imbalance": 1.25,
        "llm_imbalance": 1.004,
        "epoch": 0.1,
    }
    assert format_step(3, 10, logs) == (
        "step 3/10  loss 1.2346  lr 1e-05  grad 0.5  1234 tok/s  pad 3.4%  ViT x1.25  LLM x1.00"
    )
    assert format_step(50, 100, {"loss/docvqa": 2.0}) == "step 50/100  loss/docvqa 2.0000"


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "train/loss"),
        ("tokens_per_second", "usage/tokens_per_second"),
        ("peak_memory_gib", "usage/peak_memory_gib"),
        ("loss/chartqa", "train/loss/chartqa"),
        ("learning_rate", "update/learning_rate"),
        ("eval_loss", "eval/loss"),
        ("eval_loss/chartqa", "eval/loss/chartqa"),
    ],
)
def test_tags(name: str, tag: str) -> None:
    assert tag_of(name) == tag


LOGGED = {
    "loss": 2.5,
    "learning_rate": 1e-5,
    "grad_norm": 1.0,
    "epoch": 0.5,
    "tokens_per_second": 10,
    "samples_per_second": 1.0,
    "padding_share": 0.1,
    "data_wait_share": 0.1,
    "step_seconds": 0.2,
    "peak_memory_gib": 1.0,
    "mfu": 0.4,
}
"""All figures of a step."""


def write_curve(folder: Path, steps: range, loss: float, *, done: int = 0) -> None:
    """What a run that begins (or goes on after ``done`` steps) writes at these steps."""
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    writer = TensorBoardWriter(
        folder, arguments={"learning_rate": 1e-5}, samples=[(image, "red"), (None, "text")]
    )
    args = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    state, control = TrainerState(is_world_process_zero=True, global_step=done), TrainerControl()
    writer.on_train_begin(args, state, control)
    for step in steps:
        state.global_step = step
        writer.on_log(args, state, control, logs={**LOGGED, "loss": loss})
    writer.on_log(args, state, control, logs={"eval_loss": 1.0, "eval_seconds": 2.0})
    writer.on_log(args, state, control, logs={"train_runtime": 9.0, "train_loss": 2.0})
    writer.on_train_end(args, state, control)


def curve(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_files(tmp_path: Path) -> None:
    write_curve(tmp_path / "curve", range(4, 5), 2.5)
    events = curve(tmp_path / "curve")
    assert events.Scalars("train/loss")[0].step == 4
    assert events.Scalars("train/loss")[0].value == 2.5
    tags = events.Tags()
    assert tags["images"] == ["samples/0"]
    assert {"arguments/text_summary", "samples/1/text_summary"} <= set(tags["tensors"])
    # TensorBoard shows them sorted.
    shown = sorted(tags["scalars"])
    assert shown[:3] == ["eval/loss", "eval/seconds", "train/loss"]
    assert len(shown) == len(LOGGED) + 2


def test_a_run_that_goes_on_continues_its_own_curve(tmp_path: Path) -> None:
    folder = tmp_path / tensorboard_folder(tmp_path, None, takes_newest=True)
    write_curve(folder, range(1, 6), 3.0)  # stopped at step 5, the checkpoint is of step 3
    known = tensorboard_folder(tmp_path, folder.name, takes_newest=False)
    assert known == folder.name
    write_curve(tmp_path / known, range(4, 7), 1.0, done=3)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    events = curve(folder)
    losses = [(point.step, point.value) for point in events.Scalars("train/loss")]
    assert losses == [(1, 3.0), (2, 3.0), (3, 3.0), (4, 1.0), (5, 1.0), (6, 1.0)]
    assert [point.step for point in events.Tensors("arguments/text_summary")] == [0, 3]
    assert len(events.Images("samples/0")) == 1


def test_the_folder_of_a_curve(tmp_path: Path) -> None:
    for name in ("20250101-000000", "20250102-000000"):
        (tmp_path / name).mkdir()
    assert tensorboard_folder(tmp_path, None, takes_newest=True) == "20250102-000000"
    anew = tensorboard_folder(tmp_path, None, takes_newest=False)
    assert anew not in {path.name for path in tmp_path.iterdir()}
    for damaged in ("../curve", "gone"):
        found = tensorboard_folder(tmp_path / "none", damaged, takes_newest=False)
        assert found != damaged
