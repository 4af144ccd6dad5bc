"""Every task of the registry, end to end with the tiny model: one run, one model load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.cli import main
from internvl_chat.evaluation import opening
from internvl_chat.evaluation.registry import TASKS
from internvl_chat.evaluation.results import ANSWERS, CARD, SCORE, TIMING
from internvl_chat.evaluation.scoring import load_questions
from internvl_chat.evaluation.task import DataRoot
from tests.support.evaluation.every_task import EVERY_WRITER, LMU_DATA, write_every_task
from tests.support.search_path import search_path
from tests.support.training import ROOT

MODEL = str(ROOT / "pretrained/internvl-chat-tiny")
_NO_ANSWERS = re.compile(r"pretrained_.*\.txt|.*_(score|acc)\.(csv|json)|.*_result_final\.json")
"""Files of numbers."""
TAKEN_TOGETHER = {"refcoco", "vqa-chartqa-test"}
"""Tasks of several files, which hold a part of the answers each."""
LETTERS_ONLY = {"mmmu-dev", "mmmu-val", "scienceqa", "seed"}
"""Tasks whose files of 2024 hold the letter that was read, not the answer: other rules, which read
otherwise, may come to another score."""


@dataclass(frozen=True)
class EveryRun:
    """What became of all tasks."""

    root: Path
    exit_code: int
    num_loads: int

    def folder(self, task: str) -> Path:
        """Of a task's results."""
        return self.root / "results/pretrained_internvl-chat-tiny" / task


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EveryRun]:
    root = tmp_path_factory.mktemp("all")
    write_every_task(root)
    loads: list[object] = []
    open_model = opening.open_model

    def counted(*given: Any) -> Any:
        loads.append(given)
        return open_model(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("LMUData", str(root / LMU_DATA))
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            patch.delenv(name, raising=False)
        patch.setattr(opening, "open_model", counted)
        code = main(["eval", "run", MODEL, *TASKS, "--max-new-tokens", "2"])
        yield EveryRun(root=root, exit_code=code, num_loads=len(loads))


def scored(capsys: pytest.CaptureFixture[str], task: str, *files: Path) -> tuple[int, Any, str]:
    capsys.readouterr()
    code = main(["eval", "score", task, *map(str, files), "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out else None, told.err


def test_every_task_has_data_here() -> None:
    assert set(EVERY_WRITER) == set(TASKS)


def test_all_run_with_one_model_load(every: EveryRun) -> None:
    assert every.exit_code == 0
    assert every.num_loads == 1


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_complete_and_score_the_same(
    every: EveryRun, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, task = every.folder(name), TASKS[name]
    root = DataRoot(folder=every.root, lmu_data=every.root / LMU_DATA)
    lines = [json.loads(line) for line in (folder / ANSWERS).read_text("utf-8").splitlines()]
    questions = load_questions(task, root, task.rules[0])
    asked = [(one.id, one.prompt) for one in questions]
    assert [(line["id"], line["prompt"]) for line in lines] == asked
    assert all(isinstance(line["answer"], str) and line["tokens"] <= 2 for line in lines)
    code, told, err = scored(capsys, name, folder / ANSWERS)
    assert code == 0, err
    assert told == json.loads((folder / SCORE).read_text("utf-8"))
    assert told["n"] == len(lines) > 0


@pytest.mark.parametrize("name", TASKS)
def test_files_in_the_originals_formats_score_the_same(
    every: EveryRun, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = every.folder(name)
    ours = {ANSWERS, TIMING, SCORE, CARD, "parts", ".lock"}
    exported = sorted(path for path in folder.iterdir() if path.name not in ours)
    numbers = [path for path in exported if _NO_ANSWERS.fullmatch(path.name)]
    answers = [path for path in exported if path not in numbers]
    assert answers
    for path in numbers:
        assert scored(capsys, name, path)[0] == 2
    want = json.loads((folder / SCORE).read_text("utf-8"))
    for files in [answers] if name in TAKEN_TOGETHER else [[path] for path in answers]:
        code, told, err = scored(capsys, name, *files)
        assert code == 0, err
        if name in LETTERS_ONLY:
            assert told["rules"]["2024"] == want["rules"]["2024"]
        else:
            assert told == want


def test_scores_and_prompts_need_no_torch(every: EveryRun, tmp_path: Path) -> None:
    commands = [["eval", "list", "--json"], ["eval", "--help"]]
    for name in TASKS:
        commands.append(["eval", "prompts", name, "--json"])
        commands.append(["eval", "score", name, str(every.folder(name) / ANSWERS), "--json"])
    listed = tmp_path / "commands.jsonl"
    listed.write_text("".join(json.dumps(one) + "\n" for one in commands), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.evaluation.without_torch", str(listed)],
        cwd=every.root,
        env={**os.environ, "PYTHONPATH": search_path(ROOT), "LMUData": str(every.root / LMU_DATA)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0] * len(commands)
