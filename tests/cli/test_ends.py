"""How trainings end, as a user sees it: exit code, last line, status file; and no line but ours."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import (
    ROOT,
    environment,
    train_arguments,
    write_dataset,
    write_tiny_chat_model,
)

NAME = "internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_lora"
LORA = f"shell/internvl1.2/2nd_finetune/{NAME}.sh"
FOR_EVER = 100_000
OURS = re.compile(
    r"\d\d:\d\d:\d\d \[rank \d\] (INFO|WARNING) internvl_chat|  |step \d+/\d+  |"
    rf" *\d+%\||$|interrupted |error: |a signal ended |{NAME}: "
)
"""Beginnings of lines: the log, its tables, steps, the bar, the last word."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and meta JSON."""
    folder = tmp_path_factory.mktemp("ends")
    kinds = ("text", "image", "two", "rounds") * 2
    return write_tiny_chat_model(folder / "model"), write_dataset(folder / "data", kinds)


@pytest.fixture(autouse=True)
def interruptible() -> Any:
    """What started the tests in the background may ignore SIGINT, and no shell can trap that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start_recipe(
    places: tuple[Path, Path], output: Path, *extra: str, zero: str = "", **settings: str
) -> subprocess.Popen[str]:
    """The LoRA recipe with two ranks on the CPU."""
    model, meta = places
    values = {
        **{"MODEL_PATH": str(model), "META_PATH": str(meta), "OUTPUT_DIR": str(output)},
        **{"GPUS": "2", "BATCH_SIZE": "4", "PER_DEVICE_BATCH_SIZE": "2", "NUM_WORKERS": "1"},
        **{"DEEPSPEED_CONFIG": zero, "PYTHON": sys.executable, **settings},
    }
    arguments = {
        **{"force_image_size": 28, "max_seq_length": 256, "use_llm_lora": 4, "use_cpu": True},
        **{"bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": FOR_EVER},
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    # A test run that was started in the background ignores Ctrl-C, and so would a shell of its own.
    return subprocess.Popen(
        ["env", "--default-signal=INT", "sh", LORA, *words, *extra],
        cwd=ROOT,
        env=environment(**values),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def end(process: subprocess.Popen[str], *, at: str, tell: Callable[[], object]) -> tuple[int, str]:
    """Let it run to a line that holds ``at``, then ``tell`` it; exit code and all it said."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if at in line:
            tell()
            break
    out, _ = process.communicate(timeout=300)
    return process.returncode, (said + out).replace("\r", "\n")


def status(output: Path) -> dict[str, Any]:
    return json.loads((output / "status.json").read_text())


def not_ours(said: str) -> list[str]:
    return [line for line in said.splitlines() if not OURS.match(line)]


def rank_process(output: Path, rank: int) -> int:
    """Number of a rank's process, by its arguments and environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(output).encode() in words and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def test_one_process_and_ctrl_c(places: tuple[Path, Path], tmp_path: Path) -> None:
    argv = train_arguments(*places, tmp_path / "out", max_steps=FOR_EVER, use_cpu=True)
    process = subprocess.Popen(
        [sys.executable, "internvl_chat/train/finetune.py", *argv, "--dataloader_num_workers=1"],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    code, said = end(process, at="step 3/", tell=lambda: process.send_signal(signal.SIGINT))
    assert code == 130, said
    assert not_ours(said) == []
    assert said.splitlines()[0].endswith("no launcher's variables: a single process")
    found = status(tmp_path / "out")
    assert (found["status"], found["exit_code"]) == ("interrupted", 130)
    assert re.search(r"\ninterrupted by Ctrl-C \(SIGINT\) at step \d+ of 100000\n", said)


def test_two_ranks_save_before_they_end_and_say_nothing_but_what_is_ours(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    zero = "shell/deepspeed/zero_stage3_config.json"
    saving = ("--enable_jit_checkpoint", "True")
    process = start_recipe(places, tmp_path / "out", *saving, zero=zero)
    code, said = end(process, at="step 3/", tell=process.terminate)
    assert code == 99, said
    assert not_ours(said) == []
    found = status(tmp_path / "out")
    assert (found["status"], found["exit_code"], found["error"]) == ("saved", 99, None)
    step = found["step"]
    assert found["checkpoint"] == f"checkpoint-{step}"
    assert (tmp_path / "out" / f"checkpoint-{step}" / "data_position.json").is_file()
    assert f"checkpoint-{step} was saved: start the same command again" in said.splitlines()[-1]


@pytest.mark.slow
def test_two_ranks_and_ctrl_c(places: tuple[Path, Path], tmp_path: Path) -> None:
    process = start_recipe(places, tmp_path / "out")
    code, said = end(process, at="step 3/", tell=lambda: process.send_signal(signal.SIGINT))
    assert code == 130, said
    found = status(tmp_path / "out")
    assert (found["status"], found["exit_code"], found["rank"]) == ("interrupted", 130, 0)
    assert "Traceback" not in said


def test_a_mistake_is_the_last_thing_said(places: tuple[Path, Path], tmp_path: Path) -> None:
    process = start_recipe(places, tmp_path / "out", "--meta_path", "/nonexistent/meta.json")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert not_ours(said) == []
    last = said.splitlines()[-1]
    assert last.startswith("error: --meta_path /nonexistent/meta.json: no such file")
    assert (status(tmp_path / "out")["status"], status(tmp_path / "out")["exit_code"]) == (
        *("failed", 2),
    )
    log = (tmp_path / "out" / "training_log.txt").read_text()
    assert "ChildFailedError" in log, "torchrun's own words are kept there"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named(
    rank: int, places: tuple[Path, Path], tmp_path: Path
) -> None:
    process = start_recipe(places, tmp_path / "out")
    code, said = end(
        process,
        at="step 3/",
        tell=lambda: os.kill(rank_process(tmp_path / "out", rank), signal.SIGKILL),
    )
    assert code == 1, said
    found = status(tmp_path / "out")
    assert (found["status"], found["exit_code"]) == ("failed", 1)
    assert re.match(rf"rank {rank} \(process \d+\) was killed or crashed", found["error"])
    assert re.search(rf"\nrank {rank} \(process \d+\) was killed or crashed at step", said)
    assert "elastic" not in said


@pytest.mark.slow
def test_bare_torchrun_ends_with_our_message(places: tuple[Path, Path], tmp_path: Path) -> None:
    argv = train_arguments(places[0], Path("/nonexistent.json"), tmp_path / "out", use_cpu=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "internvl_chat/train/finetune.py", *argv),
        ],
        cwd=ROOT,
        env=environment(),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1, "torchrun's own"
    assert status(tmp_path / "out")["exit_code"] == 2
    *_, message, border = done.stderr.rstrip().splitlines()
    assert "error: --meta_path /nonexistent.json: no such file" in message
    assert set(border) == {"="}


@pytest.mark.slow
def test_killed_is_told_by_the_next_start(places: tuple[Path, Path], tmp_path: Path) -> None:
    argv = train_arguments(*places, tmp_path / "out", max_steps=FOR_EVER, use_cpu=True)
    command = [sys.executable, "internvl_chat/train/finetune.py", *argv]
    for number, told in ((signal.SIGKILL, False), (signal.SIGTERM, True)):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        code, said = end(process, at="step 2/", tell=lambda n=number, p=process: p.send_signal(n))
        assert code == (-9 if number == signal.SIGKILL else 143), said
        assert ("the run before in this OUTPUT_DIR was interrupted" in said) == told
