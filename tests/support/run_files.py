"""The run files of examples/configs, started as their comments say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.training import ROOT, environment

FOLDER = ROOT / "examples/configs"
FILES = sorted(FOLDER.glob("*.yaml"))
TINY = "pretrained/internvl-chat-tiny"


def command_of(path: Path) -> list[str]:
    """The words of the command in the file's comment."""
    text = path.read_text("utf-8").replace("\\\n#", " ")
    (line,) = re.findall(rf"^# {{3,}}(.*{re.escape(path.name)})$", text, re.M)
    return shlex.split(line)


def run_command(command: list[str], output: Path, **extra: str) -> str:
    """Start it in a clone with the stand-in model; returns what it said.

    The interpreter of the tests comes first on PATH, as in an activated environment.
    """
    bin_folder = str(Path(sys.executable).parent)
    variables = environment(**extra)
    variables["PATH"] = f"{bin_folder}:{variables['PATH']}"
    done = subprocess.run(
        [*command, "--model_name_or_path", TINY, "--output_dir", str(output)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr
