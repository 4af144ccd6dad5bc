"""Every command of docs/custom_dataset.md, run as it stands there.

Trainings are cut to two steps; what needs GPUs is only asked for the command it would run.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.data.convert.playground import DATASETS
from internvl_chat.data.meta import load_meta

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "custom_dataset.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
COMMAND = """#!/bin/sh
# internvl-chat, its trainings cut to two steps
if [ "$1" = train ]; then set -- "$@" --max_steps 2; fi
exec "{python}" -m internvl_chat "$@"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder that looks like the repository, and the command on its own PATH."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("examples", "pretrained", "shell", "internvl_chat"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    command = folder / "bin" / "internvl-chat"
    command.write_text(COMMAND.format(python=sys.executable))
    command.chmod(0o755)
    write_playground(folder / "playground")
    return folder


def run(folder: Path, block: str, **environment: str) -> str:
    done = subprocess.run(
        ["sh", "-eu"],
        input=block,
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "INTERNVL_CHAT_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", "utf-8")


def turns(answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}]


def write_playground(root: Path) -> None:
    """The nine annotations with a record each; RefCOCO's release, COCO's instances, a set."""
    for dataset in DATASETS:
        record = {"image": "a.jpg", "conversations": turns("[0.1, 0.2, 0.3, 0.4]")}
        write_json(root / "opensource" / f"{dataset.name}.jsonl", record)
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [20, 10, 80, 40]}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    write_json(root / "data/coco/annotations/instances_train2017.json", coco)
    write_json(root / "data/refcoco/instances.json", coco)
    sentences = [{"sent": "left cat", "sent_id": 0}]
    references = [{"ref_id": 1, "ann_id": 5, "split": "train", "sentences": sentences}]
    (root / "data/refcoco/refs(unc).p").write_bytes(pickle.dumps(references, 2))
    (root / "data/added").mkdir()
    Image.new("RGB", (200, 100)).save(root / "data/added/a.png")
    added = {"image": "a.png", "conversations": turns("[20, 10, 100, 50]")}
    write_json(root / "opensource/added.jsonl", added)


def blocks_with(text: str) -> list[str]:
    return [block for block in BLOCKS if text in block]


def test_every_block_is_run_by_a_test_below() -> None:
    kinds = [kind_of(block) for block in BLOCKS]
    assert kinds.count("recipe") == 2
    assert kinds.count("plus") == 1
    assert kinds.index("plus") == len(kinds) - 1
    assert len(kinds) == 11


def kind_of(block: str) -> str:
    if "sh shell/" in block:
        return "recipe"
    return "plus" if "playground/" in block else "bins"


@pytest.mark.slow
def test_from_a_folder_to_a_merged_lora(folder: Path) -> None:
    told = [run(folder, block) for block in BLOCKS if kind_of(block) == "bins"]
    assert "60 images, 60 records" in told[1]
    assert "0 errors, 0 warnings" in told[2]
    assert "bins: 48 train, 12 val" in told[2]
    assert told[3].count("all  12") == 2  # scored before and after
    assert (folder / "work_dirs/bins_lora/adapter_model.safetensors").is_file()
    assert (folder / "work_dirs/bins_merged/config.json").is_file()
    assert load_meta_in(folder, folder / "work_dirs/bins/meta.val.json") == ["bins"]


def test_recipes_build_their_commands(folder: Path) -> None:
    for block in blocks_with("sh shell/"):
        lines = run(folder, block, DRY_RUN="1").splitlines()
        assert len(lines) == block.count("sh shell/")
        assert all("--meta_path work_dirs/bins/meta.train.json" in line for line in lines)


def test_preparation_of_v1_2_plus(folder: Path) -> None:
    (block,) = (block for block in BLOCKS if kind_of(block) == "plus")
    told = run(folder, block)
    assert told.count("1 records, 1 changed, 1 boxes converted") == 10
    plus = folder / "playground/opensource/plus"
    specs = load_meta_in(folder, plus / "internvl_1_2_finetune.json")
    assert specs == [*(one.name for one in DATASETS), "refcoco_train", "coco_boxes"]
    for file in plus.glob("*.jsonl"):
        answer = json.loads(file.read_text("utf-8"))["conversations"][1]["value"]
        expected = "<box>[[100, 200, 300, 400]]</box>"
        if file.name in ("refcoco_train.jsonl", "coco_boxes.jsonl", "added.jsonl"):
            expected = "<box>[[100, 100, 500, 500]]</box>"
        assert answer.endswith(expected), file


def load_meta_in(folder: Path, path: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return [spec.name for spec in load_meta(path)]
