"""``internvl-chat eval prepare``: official releases brought into the layout that the tasks read.

Small files are written, images and files that are used as they are become symbolic links. Nothing
is downloaded, nothing is overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.releases.as_they_are import as_it_is, mmmu, mvbench
from internvl_chat.evaluation.releases.choice import ai2d, mmvp, scienceqa, seed
from internvl_chat.evaluation.releases.open_ended import mmvet
from internvl_chat.evaluation.releases.refcoco import refcoco
from internvl_chat.evaluation.releases.release import Layout, Release
from internvl_chat.evaluation.releases.vqa import (
    chartqa,
    docvqa,
    gqa,
    infovqa,
    okvqa,
    textvqa,
    textvqa_ocr,
    vizwiz_test,
    vizwiz_val,
)
from internvl_chat.evaluation.releases.yes_no import mme, pope
from internvl_chat.evaluation.tasks.refcoco import SPLITS as REFCOCO_SPLITS
from internvl_chat.files import written_aside
from internvl_chat.model.suggestions import suggest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How one release is read."""

    wants: str
    """What SRC holds, anywhere below it, for people."""
    read: Callable[[Release], Layout]


def _tsv(name: str) -> Preparation:
    return Preparation(wants=name, read=as_it_is({f"data/mmbench/{name}": name}))


def _reference_set(split: str) -> Preparation:
    name = split.partition("_")[0]
    author = "umd" if name == "refcocog" else "unc"
    wants = f"{name}/ with instances.json and refs({author}).p"
    return Preparation(wants=wants, read=refcoco(split))


_MMMU = Preparation(wants="a folder per subject with parquet, arrow or JSON lines", read=mmmu)
_ROSETTA = "TextVQA_0.5.1_val.json, TextVQA_Rosetta_OCR_v0.2_val.json, train_images/"
_LLAVA_FOLDER = "data/llava-bench-in-the-wild"

PREPARATIONS: dict[str, Preparation] = {
    "mme": Preparation(wants="the 14 task folders, in either layout", read=mme),
    "vqa-okvqa-val": Preparation(
        wants="OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, val2014/",
        read=okvqa,
    ),
    "vqa-textvqa-val": Preparation(wants="TextVQA_0.5.1_val.json, train_images/", read=textvqa),
    "vqa-textvqa-val-ocr": Preparation(wants=_ROSETTA, read=textvqa_ocr),
    "vqa-vizwiz-val": Preparation(wants="val.json, val/", read=vizwiz_val),
    "vqa-vizwiz-test": Preparation(wants="test.json, test/", read=vizwiz_test),
    "vqa-chartqa-test": Preparation(
        wants="test_human.json, test_augmented.json, test/png/", read=chartqa("human", "augmented")
    ),
    "vqa-chartqa-test-human": Preparation(
        wants="test_human.json, test/png/", read=chartqa("human")
    ),
    "vqa-chartqa-test-augmented": Preparation(
        wants="test_augmented.json, test/png/", read=chartqa("augmented")
    ),
    "vqa-docvqa-val": Preparation(wants="val_v1.0.json, documents/", read=docvqa("val")),
    "vqa-docvqa-test": Preparation(wants="test_v1.0.json, documents/", read=docvqa("test")),
    "vqa-ai2d-test": Preparation(wants="AI2D_TEST.tsv (VLMEvalKit's)", read=ai2d),
    "vqa-infovqa-val": Preparation(
        wants="infographicsVQA_val_v1.0_withQT.json, infographicsvqa_images/", read=infovqa("val")
    ),
    "vqa-infovqa-test": Preparation(
        wants="infographicsVQA_test_v1.0.json, infographicsvqa_images/", read=infovqa("test")
    ),
    "vqa-gqa-testdev": Preparation(wants="testdev_balanced_questions.json, images/", read=gqa),
    "scienceqa": Preparation(wants="problems.json, pid_splits.json, images/test/", read=scienceqa),
    "pope": Preparation(wants="coco_pope_*.json (three), val2014/", read=pope),
    "tiny_lvlm": Preparation(
        wants="updated_datasets/",
        read=as_it_is({}, {"data/tiny_lvlm/updated_datasets": "updated_datasets"}),
    ),
    "mmmu-dev": _MMMU,
    "mmmu-val": _MMMU,
    "mmmu-test": _MMMU,
    "mmvet": Preparation(wants="mm-vet.json, images/", read=mmvet),
    "mmbench-dev-en": _tsv("mmbench_dev_20230712.tsv"),
    "mmbench-test-en": _tsv("mmbench_test_en_20231003.tsv"),
    "mmbench-dev-cn": _tsv("mmbench_dev_cn_20231003.tsv"),
    "mmbench-test-cn": _tsv("mmbench_test_cn_20231003.tsv"),
    "ccbench-dev": _tsv("CCBench_legacy.tsv"),
    "seed": Preparation(
        wants="SEED-Bench.json, SEED-Bench-image/, SEED-Bench-video-image/", read=seed
    ),
    "mmvp": Preparation(wants="Questions.csv, MMVP Images/", read=mmvp),
    "llava-bench": Preparation(
        wants="questions.jsonl, context.jsonl, answers_gpt4.jsonl, images/",
        read=as_it_is(
            {
                f"{_LLAVA_FOLDER}/{name}": name
                for name in ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
            },
            {f"{_LLAVA_FOLDER}/images": "images"},
        ),
    ),
    "refcoco": Preparation(
        wants="refcoco/, refcoco+/, refcocog/: each instances.json and refs(unc).p or refs(umd).p",
        read=refcoco(*REFCOCO_SPLITS),
    ),
    **{one.replace("_", "-"): _reference_set(one) for one in REFCOCO_SPLITS},
    "mvbench": Preparation(wants="json/ with 20 files, video/", read=mvbench),
}
"""By task id. What is not here is used as it is published: the TSV family."""


def prepare(task_id: str, source: Path, target: Path) -> list[Path]:
    """Bring a release into the layout of docs/eval_data.md.

    Args:
        task_id: as ``eval run`` knows it.
        source: the unpacked release, or its one file.
        target: the folder that holds ``data/``.

    Returns:
        What was written or linked now; empty where all was in place already.

    Raises:
        ConfigError: there is nothing to prepare for this task, a file of the release is missing,
            or something else lies where a file would be written; nothing is written then.
        DatasetError: the release is malformed; nothing is written then.
    """
    if task_id not in PREPARATIONS:
        near = suggest(task_id, PREPARATIONS, limit=3, write=str)
        raise ConfigError(
            f"no preparation for {task_id!r}",
            where="TASK",
            fix=f"{near} docs/eval_data.md says which files each task reads and where they lie.",
        )
    layout = PREPARATIONS[task_id].read(Release(source))
    paths = [*layout.files, *layout.links]
    ready = {path for path in paths if _is_in_place(path, layout, target)}
    taken = [path for path in paths if path not in ready and _is_taken(target / path)]
    if taken:
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        raise ConfigError(
            f"{', '.join(taken[:3])}{more} exists with other content",
            where=str(target),
            fix="Move it away, or prepare into another folder with --out.",
        )
    written = []
    for path in paths:
        if path not in ready:
            _write(path, layout, target)
            written.append(target / path)
    return written


def _is_taken(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _is_in_place(path: str, layout: Layout, target: Path) -> bool:
    place = target / path
    if path in layout.links:
        return place.exists() and place.samefile(layout.links[path])
    content = layout.files[path]
    raw = content.encode("utf-8") if isinstance(content, str) else content
    return place.is_file() and place.read_bytes() == raw


def _write(path: str, layout: Layout, target: Path) -> None:
    place = target / path
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if path in layout.links:
            place.symlink_to(layout.links[path])
            return
        content = layout.files[path]
        raw = content.encode("utf-8") if isinstance(content, str) else content
        with written_aside(place) as aside:
            aside.write_bytes(raw)
    except OSError as err:
        raise ConfigError(f"cannot be written ({err.strerror})", where=str(place)) from err
