"""Sections ``help`` and ``options``: what the command line says, and what it takes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

from tests.pins.recipes import RECIPES, run_recipe, without_places
from tests.support.training import ROOT, environment

WIDTH = "100"
TERMINAL = {
    "COLUMNS": WIDTH,
    "TERMINAL_WIDTH": WIDTH,
    "NO_COLOR": "1",
    "TERM": "dumb",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",  # as in tests/conftest.py: no name is asked of the network
}
CHANGES_THE_LOOK = ("FORCE_COLOR", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "INTERNVL_CHAT_API_KEY")


@functools.cache
def surface() -> dict[str, Any]:
    """What ``cli_worker`` finds, once a process."""
    variables = environment(**TERMINAL)
    for name in CHANGES_THE_LOOK:
        variables.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tests/pins/cli_worker.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env=variables,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def help_texts() -> dict[str, str]:
    """Help of the program, of every verb and of every recipe, by name of the file."""
    texts = {name: _clean(told["stdout"]) for name, told in surface()["help"].items()}
    for number, recipe in enumerate(RECIPES, start=1):
        texts[f"recipe-{number}"] = _clean(run_recipe(recipe, {}, ["--help"]).stdout)
    return texts


def errors() -> dict[str, list[str]]:
    """Lines at stderr from the error on; none where the help was shown instead."""
    return {
        name: _from_error(without_places(told["stderr"]).splitlines())
        for name, told in surface()["wrong"].items()
    }


def _from_error(lines: list[str]) -> list[str]:
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    return lines[starts[0] :] if starts else lines[-1:]


def exit_codes() -> dict[str, int]:
    """Of the wrong uses, and of the helps."""
    return {
        **{name: told["exit_code"] for name, told in surface()["wrong"].items()},
        **{f"{name} --help": told["exit_code"] for name, told in surface()["help"].items()},
    }


def help_section() -> dict[str, Any]:
    """Words only: they may be changed on purpose."""
    return {"texts": help_texts(), "errors": errors()}


def options_section() -> dict[str, Any]:
    """What scripts of users rely on: options, defaults, choices, exit codes."""
    return {"options": surface()["options"], "exit_codes": exit_codes()}


def _clean(text: str) -> str:
    """Without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in without_places(text).strip().splitlines()) + "\n"
