"""Libraries are quiet by default and speak with -v; errors, and what is ours, are always shown."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest

from internvl_chat.quiet import VERBOSE, WARNINGS
from tests.support.training import environment

PROGRAM = """
import logging, sys, warnings
from internvl_chat.quiet import quiet_libraries, set_up_output
set_up_output()
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
loud = logging.getLogger("DeepSpeed")
loud.setLevel(logging.WARNING)  # as it does when it is imported
for name in ("DeepSpeed", "transformers", "bitsandbytes.backends", "accelerate", "internvl_chat"):
    logging.getLogger(name).warning("warns")
    logging.getLogger(name).error("fails")
for category in (FutureWarning, DeprecationWarning):
    warnings.warn("renamed", category)
warnings.warn("This DataLoader will create 4 worker processes in total.")
warnings.warn("OMP_NUM_THREADS/MKL_NUM_THREADS unset, we set it at 2 to improve oob performance.")
warnings.warn("this GPU is not supported")
"""


def run(**settings: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**environment(), **settings},
    )
    return done.stdout.splitlines(), done.stderr


def test_quiet() -> None:
    said, warned = run()
    libraries = ("DeepSpeed", "transformers", "bitsandbytes.backends", "accelerate")
    ours = ["internvl_chat warns", "internvl_chat fails"]
    assert said == [*(f"{name} fails" for name in libraries), *ours]
    assert "renamed" not in warned
    assert "DataLoader" not in warned
    assert "MKL" not in warned
    assert "this GPU is not supported" in warned


def test_verbose() -> None:
    said, warned = run(**{VERBOSE: "1"})
    assert "bitsandbytes.backends warns" in said
    assert "FutureWarning: renamed" in warned
    assert "DataLoader" in warned


def test_what_the_user_asks_of_python_counts() -> None:
    assert "FutureWarning: renamed" in run(PYTHONWARNINGS="default")[1]


def test_beginnings_are_patterns() -> None:
    with warnings.catch_warnings():
        for beginning in WARNINGS:
            warnings.filterwarnings("ignore", message=beginning)


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_the_command_hands_it_on(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from internvl_chat.cli import main

    monkeypatch.setenv(VERBOSE, "")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert main([flag, "status", "/nonexistent"]) == 2
    assert os.environ[VERBOSE] == "1"
