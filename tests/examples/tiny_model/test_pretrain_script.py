"""The script that makes the tiny model, with a script for its Python: what runs, what stops it."""

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


def test_the_recipe_gets_what_the_two_stages_wrote(tmp_path: Path) -> None:
    result = run(tmp_path, "no-part")
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    work = tmp_path / "work"
    (tower,) = (call for call in calls if "vision_stage" in call)
    (llm,) = (call for call in calls if "language_stage" in call)
    assert f"--out {work}/eye" in tower
    assert f"--out {work}/llm" in llm
    (recipe,) = (call for call in calls if "finetune.py" in call)
    assert f"--vision_path {work}/eye/vision" in recipe
    assert f"--mlp_path {work}/eye/mlp.safetensors" in recipe
    assert f"--llm_path {work}/llm" in recipe
    assert "examples.tiny_model.finish" in calls[-1]
    assert calls.index(recipe) > max(calls.index(tower), calls.index(llm))


def test_a_failing_language_stage_ends_the_vision_stage(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ncase $* in\n"
        f"*tiny_model.vision_stage*) echo $$ > {tmp_path}/process; exec sleep 600 ;;\n"
        "*tiny_model.language_stage*)\n"
        f"  until [ -s {tmp_path}/process ]; do sleep 0.05; done; exit 9 ;;\n"
        "esac\n"
    )
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "WORK_DIR": str(tmp_path / "work")}
    result = subprocess.run(
        ["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 9
    process = int((tmp_path / "process").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
