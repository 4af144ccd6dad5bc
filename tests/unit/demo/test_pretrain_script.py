"""The script that makes the tiny model, with a stand-in for Python: what runs, what stops it."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "shell" / "demo" / "pretrain_tiny.sh"


def run(tmp_path: Path, failing: str) -> subprocess.CompletedProcess[str]:
    """Run with a Python that logs its words and fails for one module."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\ncase $* in *{failing}*) exit 9 ;; esac\n'
    )
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "WORK_DIR": str(tmp_path / "work")}
    command = ["sh", str(SCRIPT)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stage", ["make_pretrain", "vision_stage", "language_stage"])
def test_a_failed_part_stops_the_run_before_fine_tuning(tmp_path: Path, stage: str) -> None:
    result = run(tmp_path, stage)
    assert result.returncode == 9
    assert "failed with exit status 9" in result.stderr
    assert "finetune.py" not in (tmp_path / "calls").read_text()


def test_a_part_that_is_there_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "work" / "data"
    data.mkdir(parents=True)
    (data / "meta.json").touch()
    result = run(tmp_path, "vision_stage")
    assert "data: kept" in result.stdout
    assert "make_pretrain" not in (tmp_path / "calls").read_text()
