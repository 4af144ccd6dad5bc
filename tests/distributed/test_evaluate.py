"""Answers depend on no batch size, number of ranks or interruption: files equal byte by byte."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.checkpoint.surgery.export import export
from tests.support.evaluation.pope import write_pope
from tests.support.training import ROOT, environment

pytestmark = pytest.mark.distributed

MODEL = "pretrained/internvl-chat-tiny"
NUM_IMAGES = 12  # three questions each
RNG = random.Random(11)
CASES: dict[str, dict[str, Any]] = {
    "one": {"ranks": 1, "options": ["--batch-size", "1"]},
    "batch": {"ranks": 1, "options": ["--batch-size", "8"]},
    "auto": {"ranks": 1, "options": []},
    "two": {"ranks": 2, "options": ["--batch-size", "3"]},
    "killed": {
        "ranks": 1,
        "options": ["--batch-size", "2"],
        "kill_at": sorted(RNG.sample(range(1, 34), 6)),
    },
    "killed-two": {
        "ranks": 2,
        "options": ["--batch-size", "2"],
        "kill_at": sorted(RNG.sample(range(1, 30), 4)),
    },
}
BEAMS = ["--original-beams", "--max-new-tokens", "5"]
"""Five, as the original asks models of this size under the rules of 2024."""
CASES |= {
    "beams": {"ranks": 1, "options": BEAMS},
    "beams-batch": {"ranks": 1, "options": [*BEAMS, "--batch-size", "8"]},
    "beams-two": {"ranks": 2, "options": BEAMS},
    "half": {"ranks": 1, "options": [], "half": True},
    "half-two": {"ranks": 2, "options": [], "half": True},
}
LIKE = {"beams-batch": "beams", "beams-two": "beams", "half-two": "half"}
"""Case -> the one whose files it must have; else ``one``."""
FILES = ("answers.jsonl", "score.json")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a case."""
    root = tmp_path_factory.mktemp("evaluate")
    half = root / "half-model/pretrained/internvl-chat-tiny"
    export(str(ROOT / MODEL), str(half), dtype=torch.bfloat16)
    cases = []
    for name, case in CASES.items():
        folder = root / name
        folder.mkdir()
        write_pope(folder, num_images=NUM_IMAGES)
        cases.append(
            {
                "folder": str(folder),
                "ranks": case["ranks"],
                "arguments": [
                    str(half if case.get("half") else ROOT / MODEL),
                    "pope",
                    *case["options"],
                ],
                "kill_at": case.get("kill_at", []),
            }
        )
    listed = root / "cases.json"
    listed.write_text(json.dumps(cases))
    worker = str(ROOT / "tests/distributed/evaluate_worker.py")
    done = subprocess.run(
        [sys.executable, worker, str(listed)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    logs = "".join(path.read_text()[-2000:] for path in root.glob("*/log.txt"))
    assert done.returncode == 0, done.stderr + logs
    codes = json.loads((root / "codes.json").read_text())
    assert all(code == 0 for ranks in codes for code in ranks), logs
    return root


def folder_of(results: Path, name: str) -> Path:
    return results / name / "results/pretrained_internvl-chat-tiny/pope"


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("one", "beams", "half")])
def test_files_are_those_of_one_by_one(results: Path, name: str) -> None:
    """With beams, too; and where ranks share weights that are stored in another dtype."""
    for file in FILES:
        wanted = (folder_of(results, LIKE.get(name, "one")) / file).read_bytes()
        assert (folder_of(results, name) / file).read_bytes() == wanted, file


def test_answers_stand_in_the_datas_order_and_no_part_is_left(results: Path) -> None:
    for name in CASES:
        folder = folder_of(results, name)
        lines = [json.loads(line) for line in (folder / "answers.jsonl").open()]
        assert [line["id"] for line in lines] == [str(n) for n in range(3 * NUM_IMAGES)]
        assert all(set(line) == {"id", "prompt", "answer", "tokens"} for line in lines)
        assert not (folder / "parts").exists()


def test_beams_are_asked_one_at_a_time_unless_a_batch_is_wanted(results: Path) -> None:
    sizes = {}
    for name in ("beams", "beams-two", "beams-batch"):
        lines = (folder_of(results, name) / "timing.jsonl").open()
        sizes[name] = {json.loads(line)["batch_size"] for line in lines}
    assert sizes == {"beams": {1}, "beams-two": {1}, "beams-batch": {8, 4}}
    card = json.loads((folder_of(results, "beams") / "run.json").read_text())
    assert card["beams"]["num_beams"] == 5


def test_shared_weights_leave_nothing_behind(results: Path) -> None:
    log = (results / "half-two/log.txt").read_text()
    assert "each rank holds a copy" not in log
    assert list((results / "half-two/tmp").iterdir()) == []


def test_a_killed_run_keeps_its_first_answers(results: Path) -> None:
    """Timings say in what batches the answers were given: those of all runs stand together."""
    folder = folder_of(results, "killed-two")
    timings = [json.loads(line) for line in (folder / "timing.jsonl").open()]
    assert len(timings) == 3 * NUM_IMAGES
    assert {line["rank"] for line in timings} == {0, 1}
    assert all(line["seconds"] > 0 for line in timings)


def test_the_answers_are_the_models(results: Path) -> None:
    """``model.chat`` on the same pixels, one question after the other."""
    from internvl_chat.chat import load_model
    from internvl_chat.data.pixels import normalize_pixels
    from internvl_chat.evaluation.pixels import TileRule, load_tiles
    from internvl_chat.evaluation.task import DataRoot
    from internvl_chat.evaluation.tasks.pope import POPE

    model, tokenizer = load_model(str(ROOT / MODEL))
    root = results / "one"
    rule = TileRule(side=112, max_tiles=None, has_thumbnail=False, normalize_type="imagenet")
    questions = POPE.load(DataRoot(folder=root, lmu_data=root), "2024")[:6]
    told = [json.loads(line) for line in (folder_of(results, "one") / "answers.jsonl").open()]
    for question, line in zip(questions, told, strict=False):
        tiles, _ = load_tiles(question, rule, "each")
        assert tiles is not None
        answer = model.chat(
            tokenizer, normalize_pixels(tiles), question.prompt, {"max_new_tokens": 100}
        )
        assert line["answer"] == answer
