"""Shell completion, asked as the shells ask."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from internvl_chat.cli.command import VERBS, main
from internvl_chat.cli.completion import _OPEN
from internvl_chat.train.trackers import _AVAILABLE
from tests.support.training import environment

PROGRAM = (
    "import sys; sys.argv[0] = 'internvl-chat'; from internvl_chat.cli import main\ncode = main()\n"
)
HEAVY = "sys.stderr.write(str({'torch', 'transformers'} & set(sys.modules)))\n"


def ask(*words: str, shell: str = "bash") -> list[str]:
    """What is offered in place of the last word, by the protocol of typer's scripts."""
    line = " ".join(["internvl-chat", *words])
    variables = {
        "_INTERNVL_CHAT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    code = f"import atexit, sys\natexit.register(lambda: {HEAVY.strip()})\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**variables),
    )
    assert done.stderr == "set()", done.stderr
    return done.stdout.split("\n")[:-1]


def test_verbs() -> None:
    assert ask("") == list(VERBS)
    assert ask("-v", "res") == ["resize-pos-embed"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("data", "pre"), ["preview"]),
        (("eval", ""), ["list"]),
        (("data", "preview", "--video"), ["--video-backend"]),
        (("data", "preview", "--video-backend", "py"), ["pyav"]),
        (("chat", "--nosuch"), []),
        (("train", "--use_llm"), ["--use_llm_lora"]),
        (("train", "--seed", "1", "--bf16", ""), ["True", "False"]),
        (("train", "--loss_reduction", "=", "s"), ["sample", "square"]),
        (("train", "--help"), ["--help", "--help-all"]),
        (("train", "--deepspeed", "zero3_"), ["zero3_34b", "zero3_offload"]),
        (("train", "--save_strategy", ""), ["no", "steps", "epoch", "best"]),
        (("data", "import", "a", "b", "--from", "co"), ["coco"]),
        (("eval", "run", "model", "--metric", "r"), ["relaxed", "rouge"]),
        (("plan", "--num_g"), ["--num_gpus"]),
        (("plan", "--deepspeed", "zero3_"), ["zero3_34b", "zero3_offload"]),
        (("train", ""), []),  # a run file: the shell's own completion
    ],
)
def test_options_values_and_verbs_within(words: tuple[str, ...], offered: list[str]) -> None:
    found = [word for word in ask(*words) if word]
    assert found == offered or set(offered) < set(found)


def test_a_home_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert main(["--install-completion", "bash"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --install-completion: ")
    assert "--show-completion prints" in told


def test_what_is_offered_is_taken() -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(_OPEN["lr_scheduler_type"]) <= {one.value for one in SchedulerType}
    assert set(_OPEN["optim"]) <= {one.value for one in OptimizerNames}
    assert set(_OPEN["report_to"]) <= {*_AVAILABLE, "none"}


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("zsh", '"--use_llm_lora":"Rank of LoRA on the LLM\'\'s'),
        ("fish", "--use_llm_lora\tRank of LoRA on the LLM's"),
    ],
)
def test_other_shells_get_the_words_too(shell: str, line: str) -> None:
    assert line in "\n".join(ask("train", "--use_llm", shell=shell))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script_that_is_shown(tmp_path: Path) -> None:
    program = tmp_path / "internvl-chat"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}sys.exit(code)\n")
    program.chmod(0o755)
    script = (
        f'PATH={tmp_path}:$PATH\neval "$(_INTERNVL_CHAT_COMPLETE=source_bash internvl-chat)"\n'
        "COMP_WORDS=(internvl-chat train --use_llm) COMP_CWORD=2\n"
        "_internvl_chat_completion internvl-chat\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
        "complete -p internvl-chat\n"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    first, last = done.stdout.splitlines()
    assert first == "--use_llm_lora"
    assert re.search(r"-F _internvl_chat_completion internvl-chat", last)
