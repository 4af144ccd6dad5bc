"""``internvl-chat status``: what is told of a training's folder, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.checkpoint.manifest import atomic_directory
from internvl_chat.cli import main
from internvl_chat.train.status import RunStatus, load_status
from tests.cli.test_cli import HEAVY, in_a_process


def checkpoint(folder: Path, step: int, *, position: bool = True) -> Path:
    target = folder / f"checkpoint-{step}"
    with atomic_directory(target) as staging:
        (staging / "model.safetensors").write_text("weights")
        if position:
            (staging / "data_position.json").write_text(json.dumps({"global_step": step}))
    return target


def ended(folder: Path, status: Any, code: int | None = None, error: str | None = None) -> None:
    run = RunStatus(folder)
    run.start()
    run.training(step=0, max_steps=9)
    run.note(step=7)
    run.end(status, code=code, error=error)


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, ``--json`` and text."""
    code = main(["status", str(folder), "--json"])
    values = json.loads(capsys.readouterr().out)
    assert main(["status", str(folder)]) == code
    return code, values, capsys.readouterr().out


def test_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path, "complete", 0)
    code, values, text = told(tmp_path, capsys)
    assert (code, values["status"], values["exit_code"]) == (0, "complete", 0)
    assert text.startswith(f"{tmp_path}: complete (exit code 0)\n  step 7 of 9, process ")


def test_complete_with_a_refused_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path, "complete", 0)
    RunStatus(tmp_path).end("failed", code=2, error="--meta_path: no such file")
    code, values, text = told(tmp_path, capsys)
    assert (code, values["last_start"]["exit_code"]) == (0, 2)
    assert "a later start changed nothing: failed at " in text
    assert "--meta_path: no such file" in text


def test_interrupted_goes_on_from_the_newest_that_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(tmp_path, "interrupted", 143, "interrupted by SIGTERM at step 7 of 9")
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    (checkpoint(tmp_path, 6) / "model.safetensors").write_text("wEights")
    checkpoint(tmp_path, 7, position=False)
    code, values, text = told(tmp_path, capsys)
    assert (code, values["resumable"], values["resumable_step"]) == (4, "checkpoint-4", 4)
    assert len(values["damaged"]) == 2
    assert "passed over: checkpoint-7: no data_position.json" in text
    assert "passed over: checkpoint-6: " in text
    assert text.endswith("  the same command goes on from checkpoint-4, step 4 of 9\n")
    assert main(["status", str(tmp_path), "--quick", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["resumable"] == "checkpoint-6", "of the same size"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("failed", 5, 1), ("saved", 99, 4), ("running", None, 3)],
)
def test_exit_codes(
    status: str, code: int | None, expected: int, tmp_path: Path, capsys: Any
) -> None:
    if status == "running":
        RunStatus(tmp_path).start()
    else:
        ended(tmp_path, status, code, "why")
    found, values, text = told(tmp_path, capsys)
    assert (found, values["status"]) == (expected, status)
    assert ("nothing to continue from" in text) == (status != "running")


def test_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunStatus(tmp_path).start()
    content = load_status(tmp_path) or {}
    content["started_ticks"] = -1  # the number of a process is given again
    (tmp_path / "status.json").write_text(json.dumps(content))
    code, values, text = told(tmp_path, capsys)
    assert (code, values["status"]) == (4, "interrupted")
    assert f"process {content['pid']} on {content['host']} ended without a word" in text


def test_no_training_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["status", str(tmp_path)]) == 2
    assert "no status.json that can be read" in capsys.readouterr().err


def test_it_loads_nothing_heavy(tmp_path: Path) -> None:
    ended(tmp_path, "complete", 0)
    done = in_a_process("status", str(tmp_path), then=HEAVY)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "set()")
