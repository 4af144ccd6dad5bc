"""The internvl-chat command: wrong use, errors in a few lines."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
from typer.core import TyperCommand

from internvl_chat import __version__
from internvl_chat.cli import main
from internvl_chat.cli.command import PANELS, VERBS
from internvl_chat.cli.train import train
from internvl_chat.train import finetune
from tests.support.training import ROOT, environment


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["nosuch"], "No such command 'nosuch'. See"),
        (["data", "preview"], "Missing argument 'meta'. See"),
        (["data", "preview", "--nosuch"], "--nosuch"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    argv: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


def test_without_arguments_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "train" in captured.out
    assert "error" not in captured.err


def test_a_users_error_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "preview", "no/such/meta.json", "--model", "no/such/model"]) in (2, 3)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "no/such" in error


def test_the_version_is_a_release_number() -> None:
    assert __version__.count(".") == 2


def in_a_process(*argv: str, then: str = "") -> subprocess.CompletedProcess[str]:
    """``internvl-chat ARGV`` as its console script runs it, then the code ``then``."""
    code = f"import sys\nfrom internvl_chat.cli import main\ncode = main()\n{then}"
    return subprocess.run(
        [sys.executable, "-c", f"{code}\nsys.exit(code)", *argv],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )


HEAVY = "print({'torch', 'transformers'} & set(sys.modules))"


def test_help_and_a_mistyped_verb_load_nothing_heavy() -> None:
    done = in_a_process("--help", then=HEAVY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "set()"
    done = in_a_process("chta", then=HEAVY)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr == (
        "error: No such command 'chta'. Did you mean 'chat'? See internvl-chat --help.\n"
    )


def test_help_lists_every_verb_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.split("─ Training ─")[1]
    rows = re.findall(r"^│ ([a-z0-9][a-z0-9-]*) ", shown, re.M)
    assert rows == list(VERBS)


def test_every_verb_is_in_a_panel() -> None:
    assert [verb for verbs in PANELS.values() for verb in verbs] == list(VERBS)


def test_every_file_is_a_verb() -> None:
    files = {path.stem for path in (ROOT / "internvl_chat/cli").glob("*.py")}
    files = {name for name in files if not name.startswith("data_")}  # verbs of `data`
    no_verbs = {"__init__", "command", "completion", "options", "own_data", "run"}
    no_verbs |= {"original_flags", "run_options", "chat_arguments"}
    assert files - no_verbs == {verb.replace("-", "_") for verb in VERBS}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_a_verb_shows_its_line_of_the_table(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    words = capsys.readouterr().out.split()
    assert VERBS[verb] in " ".join(words)


def test_train_describes_itself_as_the_table_does() -> None:
    paragraph = (train.__doc__ or "").split("\n\n")[0]
    assert " ".join(paragraph.split()) == VERBS["train"]


def test_arguments_reach_a_verb_as_they_were_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(finetune, "main", lambda argv, *, assumes: seen.append(argv) or 7)
    typed = ["--output_dir", "out", "run.yaml", "--help-all", "-v", "--learning_rate=1e-5", "-1"]
    assert main(["train", *typed]) == 7
    assert seen == [typed]
    # What follows two dashes is no option.
    assert main(["export", "--dtype", "float32", "--", "-a", "-b"]) == 2
    assert "-a" in capsys.readouterr().err


def test_the_hook_of_the_commands_is_there() -> None:
    assert list(inspect.signature(TyperCommand.parse_args).parameters) == ["self", "ctx", "args"]
