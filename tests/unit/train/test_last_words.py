"""What a finished run says last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainerState

from internvl_chat.train.early_stopping import BestEvaluation
from internvl_chat.train.last_words import chat_command, last_words

HISTORY = [
    {"loss": 3.0, "step": 1},
    {"loss": 2.0, "step": 2},
    {"eval_loss": 1.5, "eval_loss/a": 1.0, "eval_loss/b": 2.0, "step": 2},
    {"train_runtime": 75.0, "step": 2},
]


def test_a_run_that_went_on(tmp_path: Path) -> None:
    state = TrainerState(global_step=2, log_history=HISTORY, best_global_step=1)
    (tmp_path / "adapter_config.json").write_text("{}")
    told = last_words(
        state, tmp_path, seconds=75.4, first_step=1, bad_samples={"a": 2}, is_best=True
    )
    assert told == [
        "finished: 2 steps, 1 of them in 0:01:15",
        "loss: 2.0000 (first 3.0000)",
        "validation loss: 1.5000 at step 2 (a 1.0000, b 2.0000)",
        f"skipped records: a 2 (why: {tmp_path}/bad_samples.jsonl)",
        f"model: {tmp_path} (an adapter; its base is named in it), that of step 1, which "
        "validated best",
        f"talk to it: {chat_command(tmp_path)}",
    ]


def test_a_run_that_stopped_early(tmp_path: Path) -> None:
    history = [*HISTORY, {"eval_loss": 1.7, "step": 3}]
    state = TrainerState(global_step=3, max_steps=9, log_history=history)
    told = last_words(
        state,
        tmp_path,
        seconds=3,
        first_step=0,
        bad_samples={},
        is_best=False,
        best=BestEvaluation(step=2, metric="eval_loss", value=1.5),
        stopped_early="stopped early at step 3 of 9: because",
    )
    assert told[:5] == [
        "finished: 3 steps in 0:00:03",
        "stopped early at step 3 of 9: because",
        "loss: 2.0000 (first 3.0000)",
        "validation loss: 1.7000 at step 3",
        "best validation: eval_loss 1.5000 at step 2",
    ]


def test_a_run_with_nothing_to_say(tmp_path: Path) -> None:
    state = TrainerState(global_step=6)
    told = last_words(state, tmp_path, seconds=0, first_step=0, bad_samples={}, is_best=False)
    assert told == [
        "finished: 6 steps in 0:00:00",
        "skipped records: none",
        f"model: {tmp_path}",
        f"talk to it: {chat_command(tmp_path)}",
    ]


def test_the_command_is_this_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(sys.executable).parent
    folder = tmp_path / "my run"
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{os.environ['PATH']}")
    if not (own / "internvl-chat").is_file():
        pytest.skip("the package is not installed here")
    assert chat_command(folder) == f"internvl-chat chat --model '{folder}'"
    other = tmp_path / "bin"
    other.mkdir()
    (other / "internvl-chat").write_text("#!/bin/sh\nexit 9\n")
    (other / "internvl-chat").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert chat_command(folder) == f"{own}/internvl-chat chat --model '{folder}'"
    help_of = chat_command(folder).replace(f"--model '{folder}'", "--help")
    assert subprocess.run(help_of, shell=True, capture_output=True, timeout=120).returncode == 0


def test_an_adapter_that_was_trained_on_four_bits_is_asked_on_them(tmp_path: Path) -> None:
    plain = chat_command(tmp_path)
    (tmp_path / "config.json").write_text('{"trained_in_4bit": true}')
    assert chat_command(tmp_path) == f"{plain} --load-in-4bit"
