"""`sh shell/quickstart.sh` as a user runs it, with the small budget: every phase for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "pretrained/internvl-chat-tiny"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "setup.py")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """This interpreter's packages as a finished environment, so that nothing is installed."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    pinned = b"".join((ROOT / name).read_bytes() for name in REQUIREMENTS)
    stamp = subprocess.run(["cksum"], input=pinned, capture_output=True, check=True).stdout
    (folder / ".installed-quickstart").write_bytes(stamp)
    return folder


def run(venv: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the script from another folder than the repository's root."""
    return subprocess.run(
        ["sh", str(ROOT / "shell/quickstart.sh"), *arguments],
        cwd=venv,
        env={**os.environ, "VENV": str(venv), "QUICKSTART_BUDGET": "small", **settings},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_help_names_the_options(venv: Path) -> None:
    done = run(venv, "--help")
    assert done.returncode == 0, done.stderr
    assert "--again" in done.stdout
    assert "QUICKSTART_DIR" in done.stdout


def test_a_mistake_is_told_before_anything_is_written(venv: Path, tmp_path: Path) -> None:
    done = run(venv, QUICKSTART_BUDGET="huge", QUICKSTART_DIR=str(tmp_path / "run"))
    assert done.returncode == 2
    assert "unknown budget 'huge'" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.quickstart
@pytest.mark.distributed
@pytest.mark.skipif(not TINY.is_dir(), reason="the tiny model is not in this checkout")
def test_the_small_budget_goes_through_every_phase(venv: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("--playground", str(tmp_path / "playground"))
    done = run(venv, *arguments, QUICKSTART_DIR=str(folder), PARTITION="nowhere")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads((folder / "result.json").read_text())
    datasets = ["digits", "shapes", "grounding", "charts", "reading", "pairs", "text"]
    assert list(result["before"]) == list(result["after"]) == datasets
    assert list(result["seconds"]) == ["data", "before", "train", "after", "total"]
    assert (result["budget"], result["optimizer_steps"]) == ("small", 6)
    assert result["before"]["shapes"] > 0.4, "the shipped model does not see"
    page = (folder / "report.html").read_text()
    assert page.count("<article") > 20
    assert page.count("<polyline") >= 2
    assert (folder / "model/model.safetensors").is_file()
    assert (folder / "model/preprocessor_config.json").is_file()

    again = run(venv, *arguments, QUICKSTART_DIR=str(folder))
    assert again.returncode == 0
    assert "This run is finished" in again.stdout
