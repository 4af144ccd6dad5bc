"""What a newcomer does, from ``git clone`` to a served adapter, typed as docs/first_hour.md has it.

``python -m tests.walkthrough.walk DIR`` does all of it for real in a new folder: a clone of its
own, the environment that the quickstart makes there (the network is needed), every program in a
process of its own. The test beside it leaves out the quickstart, which has tests of its own, and
uses the environment that it runs in.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

from tests.support.page_runs import PageRun, copy_of_clone
from tests.support.pages import ROOT, Block, blocks

PAGE = "docs/first_hour.md"
WHOLE = ("--output_dir work_dirs/things_lora",)
"""Trainings that are not cut short."""
PROMISES = (
    ("internvl-chat --version", r"^internvl-chat \d+\.\d+"),
    ("internvl-chat env", r"^Packages\n(.*\n)*  torch +\d"),
    ("data init", r"60 images, 60 records"),
    ("data check", r"0 errors, 0 warnings"),
    ("data preview", r"\bmetal\b"),
    ("internvl-chat train", r"what trains: LoRA of rank 16"),
    ("internvl-chat train", r"held out +12 +48 samples"),
    ("internvl-chat train", r"validation loss: \d"),
    ("internvl-chat status", r": complete \(exit code 0\)"),
    ("internvl-chat chat", r"^metal$"),
    ("eval run pretrained/", r"^all +12 +0(\.0+)?$"),
    ("eval run work_dirs/", r"^all +12 +(1\.0|0\.9)\d*$"),
    ("from openai import", r"^paper$"),
    ("merge-lora", r"\bOK\b"),
)
"""A part of one command, and what it prints by the page's words, line by line."""


def split_page() -> tuple[Block, Block, list[Block]]:
    """The block that clones, the one that makes the environment, and those that follow."""
    cloning, preparing, *rest = (one for one in blocks(PAGE) if one.commands)
    assert cloning.text.startswith("git clone "), cloning
    assert "shell/quickstart.sh" in preparing.text, preparing
    return cloning, preparing, rest


def clone_as_typed(folder: Path) -> Path:
    """Type the page's first block; then bring in what is not committed yet.

    Args:
        folder: a new one, in which the reader stands.
    """
    folder.mkdir(parents=True)
    told = subprocess.run(
        ["sh", "-eu", "-c", f"{split_page()[0].text}pwd -P"],
        cwd=folder,
        env={**os.environ, "REPOSITORY": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    return copy_of_clone(Path(told.stdout.splitlines()[-1]))


def walk(run: PageRun) -> None:
    """Type what follows the environment, and hold what is printed against the page.

    Raises:
        AssertionError: a command failed, or did not print what the page promises.
    """
    rest = split_page()[2]
    run.run_blocks(rest)
    told = [(one.text, run.told.get(one.line)) for block in rest for one in block.commands]
    for part, promise in PROMISES:
        (printed,) = (text for command, text in told if part in command)
        assert printed is not None, part
        assert re.search(promise, printed, re.MULTILINE), f"{part}: {printed[-3000:]}"
    adapter, merged = (run.folder / "work_dirs" / name for name in ("things_lora", "things_merged"))
    assert (adapter / "adapter_model.safetensors").is_file()
    assert (merged / "config.json").is_file()


def main() -> None:
    """Walk for real."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", type=Path, help="A new folder.")
    folder = parser.parse_args().dir.resolve()
    clone = clone_as_typed(folder)
    preparing = split_page()[1].text
    subprocess.run(["sh", "-eu", "-c", preparing], cwd=clone, check=True)
    programs = clone / ".venv/bin"
    # Without the clone on PYTHONPATH: what the quickstart has installed must be enough.
    walk(
        PageRun(
            folder=clone,
            shared=folder,
            programs=programs,
            more={"PYTHONPATH": ""},
            stand_ins=frozenset({"network"}),
            whole=WHOLE,
            python=str(programs / "python"),
        )
    )
    print(f"walked: {clone}")


if __name__ == "__main__":
    main()
