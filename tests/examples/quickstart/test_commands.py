"""Commands that a shell reads as they were meant."""

import subprocess
import sys

from examples.quickstart.commands import WIDTH, shell_command, wrapped

ARGUMENTS = [sys.executable, "-c", "import os, sys; print(sys.argv[1:], os.environ['NAME'])"]
GIVEN = ["--a", "b c", "--flag", "it's", "--number", "-1", *(f"--option_{i}" for i in range(12))]


def test_a_shell_gets_every_word_and_setting_whole() -> None:
    settings = {"NAME": "a b'c", "OTHER": "1"}
    for text in (wrapped, shell_command):
        command = text([*ARGUMENTS, *GIVEN], settings)
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == f"{GIVEN} a b'c\n"


def test_lines_are_short_and_options_keep_their_values() -> None:
    lines = wrapped(["sh", "recipe.sh", *GIVEN], {"META_PATH": "x" * 40, "GPUS": "2"}).split("\n")
    assert len(lines) > 2
    assert max(map(len, lines)) <= WIDTH
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert any("--a 'b c'" in line for line in lines)
    assert "\\" not in shell_command(["sh", "recipe.sh", *GIVEN])
