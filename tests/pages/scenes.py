"""What a page takes for granted beside the clone, and what its commands must print."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from internvl_chat.data.convert.playground import DATASETS
from tests.support.evaluation.releases import RELEASES
from tests.support.hub import files_of
from tests.support.page_runs import TINY, PageRun
from tests.support.pages import blocks, commands


def nothing(run: PageRun) -> None:
    """The commands' exit codes are enough."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A page's surroundings; most pages have none."""

    puts: Sequence[Callable[[PageRun], None]] = ()
    """Write into the clone what an earlier page or a download would have left."""
    stand_ins: Sequence[str] = ()
    """Needs for which ``puts`` or the local hub stand in."""
    shows: Sequence[tuple[str, str]] = ()
    """A part of one command, and what it must print."""
    look: Callable[[PageRun], None] = nothing
    whole: tuple[str, ...] = ()
    """Parts of the trainings that are not cut to two steps."""
    wants: tuple[str, ...] = ()
    """Programs of the system; where one is missing the page is skipped."""
    slow: bool = False


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", "utf-8")


def put_quickstart_model(run: PageRun) -> None:
    """The shipped model in place of the fine-tuned one, a drawing in place of the scan."""
    folder = run.folder
    shutil.copytree(folder / TINY, folder / "work_dirs/quickstart/model")
    image = folder / "playground/data/quickstart/digits/0000_0.png"
    image.parent.mkdir(parents=True)
    Image.open(folder / "examples/image1.jpg").save(image)


def put_bins_lora(run: PageRun) -> None:
    """The adapter that docs/custom_dataset.md leaves, after two steps on the samples."""
    kept = run.shared / "bins_lora"
    if not kept.is_dir():
        (train,) = (
            one.text
            for one in commands("docs/custom_dataset.md")
            if one.text.startswith("internvl-chat train")
        )
        meta = "work_dirs/bins/meta.train.json"
        assert meta in train
        run.shell(train.replace(meta, "examples/samples/meta.json") + " --max_steps 2\n", "lora")
        shutil.move(run.folder / "work_dirs/bins_lora", kept)
    shutil.copytree(kept, run.folder / "work_dirs/bins_lora")


def put_releases(run: PageRun) -> None:
    """POPE and OK-VQA as they are downloaded."""
    RELEASES["pope"](run.folder / "downloads/pope")
    RELEASES["vqa-okvqa-val"](run.folder / "downloads/okvqa")


def put_playground(run: PageRun) -> None:
    """The nine annotations with a record each; RefCOCO's release, COCO's instances, a set."""
    root = run.folder / "playground"
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


def turns(answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}]


def look_at_own_data(run: PageRun) -> None:
    """The scores that the page promises, and the boxes of V1-2-Plus."""
    scores = [
        float(score)
        for score in re.findall(r"^all +12 +([\d.]+)", "".join(run.told.values()), re.M)
    ]
    assert scores[0] == 0
    assert min(scores[1:2]) > 0.9
    (meta,) = (one for one in blocks("docs/custom_dataset.md") if '"annotation"' in one.text)
    assert json.loads(meta.text) == json.loads(
        (run.folder / "work_dirs/bins/meta.json").read_text()
    )
    plus = run.folder / "playground/opensource/plus"
    entries = json.loads((plus / "internvl_1_2_finetune.json").read_text())
    assert list(entries) == [*(one.name for one in DATASETS), "refcoco_train", "coco_boxes"]
    for file in plus.glob("*.jsonl"):
        answer = json.loads(file.read_text("utf-8"))["conversations"][1]["value"]
        expected = "<box>[[100, 200, 300, 400]]</box>"
        if file.name in ("refcoco_train.jsonl", "coco_boxes.jsonl", "added.jsonl"):
            expected = "<box>[[100, 100, 500, 500]]</box>"
        assert answer.endswith(expected), file


def look_at_answers(run: PageRun) -> None:
    """The first question and its answer are as shown."""
    (shown,) = (one.text for one in blocks("docs/inference.md") if one.language == "json")
    files = ("examples/samples/questions.jsonl", "work_dirs/answers.jsonl")
    firsts = [(run.folder / name).read_text("utf-8").splitlines()[0] for name in files]
    assert shown.splitlines() == firsts


def look_at_downloads(run: PageRun) -> None:
    """What the local hub has lies where the recipes look for it."""
    for name in (
        "InternViT-6B-448px-V1-2",
        "Nous-Hermes-2-Yi-34B",
        "InternVL-Chat-V1-2",
        "InternVL-Chat-V1-2-Plus",
    ):
        for path, content in files_of(f"OpenGVLab/{name}").items():
            assert (run.folder / "pretrained" / name / path).read_bytes() == content


def look_at_slurm(run: PageRun) -> None:
    """The line that is shown is the beginning of the one that is printed."""
    first, second = blocks("docs/slurm.md")[:2]
    shown = " ".join(second.text.split()).removesuffix("…").strip()
    printed = run.told[first.commands[0].line]
    assert any(shown in line for line in printed.splitlines()), printed


SCENES: dict[str, Scene] = {
    "README.md": Scene(
        shows=(("data init", "60 images, 60 records"), ("--decode", "0 errors, 0 warnings")),
    ),
    "pretrained/README.md": Scene(stand_ins=("weights",), look=look_at_downloads),
    "docs/custom_dataset.md": Scene(
        puts=(put_playground,),
        stand_ins=("data",),
        shows=(
            ("data init work_dirs/bins --csv", "60 images, 60 records"),
            ("data check", "0 errors, 0 warnings"),
            ("data split", "bins: 48 train, 12 val"),
            ("--image work_dirs/bins/red_03.png", "metal"),
        ),
        look=look_at_own_data,
        whole=("--output_dir work_dirs/bins_lora",),
        slow=True,
    ),
    "docs/data_checks.md": Scene(shows=(("meta.json --decode", "0 errors"),)),
    "docs/demo_page.md": Scene(puts=(put_quickstart_model,), shows=(("gradio_client", "star"),)),
    "docs/eval_data.md": Scene(puts=(put_releases,), stand_ins=("data",)),
    "docs/evaluation.md": Scene(puts=(put_releases,), stand_ins=("data",)),
    "docs/inference.md": Scene(shows=(("--image", "star"),), look=look_at_answers),
    "docs/install.md": Scene(shows=(("DEEPSPEED_CONFIG=zero3", "finetune --model_name_or_path"),)),
    "docs/quickstart.md": Scene(puts=(put_quickstart_model,)),
    "docs/serve.md": Scene(
        shows=(
            ("from openai", "star"),
            ("/v1/chat/completions -H", "choices"),
            ("8000/metrics", "internvl_chat:num_requests_running"),
        ),
        wants=("curl",),
    ),
    "docs/slurm.md": Scene(look=look_at_slurm),
    "docs/surgery.md": Scene(puts=(put_bins_lora,)),
    "docs/training.md": Scene(
        shows=(
            ("--early_stopping_patience", "stopped early at step"),
            ("status work_dirs/stopped", "best eval_loss"),
        ),
        whole=("--output_dir work_dirs/stopped",),
        slow=True,  # two ranks, each of which imports everything
    ),
}
