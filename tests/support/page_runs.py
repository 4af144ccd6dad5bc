"""Runs the commands of a page as a reader would: in a fresh clone, in their order."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from tests.support.pages import ROOT, Block, Command, blocks
from tests.support.search_path import search_path
from tests.support.warm import CLIENT

LIMIT_SECONDS = 600
"""Of a block; one that takes longer is ended and fails."""
TINY = "pretrained/internvl-chat-tiny"
SETTINGS_OF_OTHERS = (
    *("GPUS", "GPUS_PER_NODE", "PARTITION", "LAUNCHER", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"),
    *("OUTPUT_DIR", "META_PATH", "MODEL_PATH", "TRAINER", "DRY_RUN", "PYTHON", "LMUData"),
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "INTERNVL_CHAT_API_KEY", "HF_HUB_OFFLINE"),
)
"""Set in the shell of who runs the tests, they would make other commands of the pages'."""
_LAUNCHES = re.compile(r"\bsh (?:shell/(?:internvl1\.2|mine)/|evaluate\.sh)")
_SERVES = re.compile(r"internvl-chat (?:serve|demo)\b")
_PORT = re.compile(r"\b(?:7860|8000)\b")
SHORT_TRAINER = """import sys, runpy
sys.argv = [{trainer!r}, *sys.argv[1:], "--max_steps", "2"]
runpy.run_path({trainer!r}, run_name="__main__")
"""

PYTHON = """#!/bin/sh
case $1 in *.py) exec {folder}/warm-python "$@" ;; esac
exec {python} "$@"
"""
"""``python FILE`` starts at once, too."""


def treatment(command: Command, stand_ins: Iterable[str] = ()) -> str:
    """``run``; ``dry`` (the line that it would run); ``stand-in`` (run on what the test puts there
    for what it needs); else ``not``.
    """
    if command.need is None:
        return "run"
    if _LAUNCHES.search(command.text) and "srun" not in command.text:
        return "dry"
    return "stand-in" if command.need in stand_ins else "not"


def files_of_clone() -> list[str]:
    """What a fresh clone of the working tree would hold; in an unpacked sdist, what it lists."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    ).stdout
    names = [name for name in listed.split("\0") if name]
    if not names:
        sources = (ROOT / "internvl_chat.egg-info/SOURCES.txt").read_text("utf-8").splitlines()
        names = [name for name in sources if not name.startswith("internvl_chat.egg-info/")]
    return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def copy_of_clone(target: Path) -> Path:
    """The files of a fresh clone, in ``target``."""
    for name in files_of_clone():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


@contextmanager
def warm_programs(folder: Path, clone: Path) -> Iterator[Path]:
    """A folder for PATH whose ``internvl-chat`` starts at once; its code is the clone's."""
    link = f"/tmp/warm-{os.getpid()}-{abs(hash(folder)) % 10**6}"  # paths of sockets are short
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm", link],
        cwd=clone,
        env=environment(clone, {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "ready\n"
        for name, kind in (("internvl-chat", "verb"), ("warm-python", "file")):
            program = folder / name
            program.write_text(CLIENT.format(python=sys.executable, socket=link, kind=kind))
            program.chmod(0o755)
        (folder / "python").write_text(PYTHON.format(python=sys.executable, folder=folder))
        (folder / "python").chmod(0o755)
        yield folder
    finally:
        server.terminate()
        server.wait(30)
        Path(link).unlink(missing_ok=True)


def environment(clone: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Of the commands: this interpreter's programs, the clone's code."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_OTHERS}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {
        **kept,
        "PYTHONPATH": search_path(clone),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        **more,
    }


@dataclass(kw_only=True)
class PageRun:
    """A reader's folder while the commands of one page are typed in it."""

    folder: Path
    """A clone of its own."""
    shared: Path
    """Where pages leave things for each other."""
    programs: Path
    """Goes before PATH."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further settings of the environment."""
    stand_ins: frozenset[str] = frozenset()
    whole: tuple[str, ...] = ()
    """Parts of the trainings that are not cut to two steps."""
    python: str = "warm-python"
    """Runs the blocks of Python."""
    told: dict[int, str] = field(default_factory=dict)
    """By a command's line in the page: what it printed, stdout and stderr as they came."""
    _serving: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    """By their ports in the page."""
    _ports: dict[str, str] = field(default_factory=dict)
    """Free ones in place of those in the page."""

    def run(self, page: str) -> PageRun:
        """Type everything that can be run; every command must end with 0.

        Raises:
            AssertionError: one did not, with what it printed.
        """
        return self.run_blocks(blocks(page))

    def run_blocks(self, typed: Iterable[Block]) -> PageRun:
        """Type these blocks; see :meth:`run`."""
        try:
            for block in typed:
                if name := block.script:
                    self._save(block, name)
                else:
                    self._type(block)
        finally:
            self._end_servers()
        return self

    def _save(self, block: Block, name: str) -> None:
        """A script, saved under its name, must at least print the line that it would run."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        self.told[block.line] = self.shell(f"DRY_RUN=1 sh {shlex.quote(name)}\n", block.page)

    def _type(self, block: Block) -> None:
        todo = [one for one in block.commands if treatment(one, self.stand_ins) != "not"]
        for serves, group in groupby(todo, key=lambda one: bool(_SERVES.search(one.text))):
            commands = list(group)
            if serves:
                for command in commands:
                    self._serve(command)
            elif block.language == "python":
                self._python(commands[0])
            else:
                self._together(commands)

    def _together(self, commands: list[Command]) -> None:
        """Type commands of a block into one shell, so that ``cd`` and ``export`` hold."""
        lines = []
        for command in commands:
            lines.append(f'printf "\\n@@{command.line}\\n"')
            lines += self._typed(command)
        told = self.shell("\n".join(lines) + "\n", commands[0].where)
        for line, text in re.findall(r"^@@(\d+)\n(.*?)(?=^@@|\Z)", told, re.DOTALL | re.MULTILINE):
            self.told[int(line)] = text

    def _typed(self, command: Command) -> list[str]:
        """The lines of shell for one command, trainings cut where they are to be short."""
        text = self._at_free_ports(command.text)
        if treatment(command, self.stand_ins) == "dry":
            return ["export DRY_RUN=1", text, "unset DRY_RUN"]
        if any(part in text for part in self.whole):
            return [text]
        if re.match(r"internvl-chat train\b|torchrun .*finetune\.py", text):
            return [f"{text} --max_steps 2"]
        if "shell/internvl1.2/" in text and "DRY_RUN=1" not in text:
            return [f"export TRAINER={shlex.quote(self._trainer())}", text, "unset TRAINER"]
        return [text]

    def _trainer(self) -> str:
        path = self.folder.parent / f"{self.folder.name}_trainer.py"
        trainer = str(self.folder / "internvl_chat/train/finetune.py")
        path.write_text(SHORT_TRAINER.format(trainer=trainer))
        return str(path)

    def _python(self, command: Command) -> None:
        path = self.folder.parent / f"{self.folder.name}_{command.line}.py"
        path.write_text(self._at_free_ports(command.text))
        self.told[command.line] = self.shell(
            f"{self.python} {shlex.quote(str(path))}\n", command.where
        )

    def shell(self, script: str, where: str) -> str:
        """What the script printed.

        Raises:
            AssertionError: it did not end with 0 in time.
        """
        process = subprocess.Popen(
            ["sh", "-eu", "-c", script],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            told, _ = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            told = process.communicate()[0] + f"\nended after {LIMIT_SECONDS} s"
        assert process.returncode == 0, f"{where}: {process.returncode}\n{script}\n{told[-6000:]}"
        return told

    def _at_free_ports(self, text: str) -> str:
        return _PORT.sub(lambda found: self._ports.get(found[0], found[0]), text)

    def _serve(self, command: Command) -> None:
        """Start a server of the page and wait for its address; it stays until the page ends."""
        words = shlex.split(command.text)
        named = words[words.index("--port") + 1] if "--port" in words else ""
        port = named or ("8000" if "serve" in words else "")
        assert port not in self._serving, f"{command.where}: two servers at port {port or 'any'}"
        self._ports[port] = free = str(_free_port())
        process = subprocess.Popen(
            [*words, "--port", free],  # the last one counts
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._serving[port] = process
        assert process.stdout is not None
        told = ""
        for line in process.stdout:  # ends with the server, should it fail
            told += line
            if f"http://127.0.0.1:{free}" in line:
                break
        else:
            raise AssertionError(f"{command.where}: the server ended\n{told[-6000:]}")
        self.told[command.line] = told

    def _end_servers(self) -> None:
        """Ctrl-C for each; it must end with 0."""
        for process in self._serving.values():
            process.send_signal(signal.SIGINT)
        for process in self._serving.values():
            try:
                rest, _ = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            assert process.returncode == 0, rest[-3000:]

    def _environment(self) -> dict[str, str]:
        found = environment(self.folder, self.more)
        found["PATH"] = f"{self.programs}{os.pathsep}{found['PATH']}"
        return found


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
