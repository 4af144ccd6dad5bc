"""Invented data of every task of the registry, in the exact layout, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from internvl_chat.evaluation.tasks.refcoco import REFCOCO
from tests.support.evaluation import mmbench, open_ended, tsv, vqa
from tests.support.evaluation.choice import (
    write_mme,
    write_mmvp,
    write_mvbench,
    write_refcoco,
    write_scienceqa,
    write_seed,
    write_tiny_lvlm,
)
from tests.support.evaluation.mmmu import write_mmmu
from tests.support.evaluation.pope import write_pope

LMU_DATA = "LMUData"
"""Folder of the TSV family below the root."""


def _below(folder: str, write: Callable[[Path], None], root: Path) -> None:
    (root / folder).mkdir(exist_ok=True)
    write(root / folder)


def _write_small_pope(root: Path) -> None:
    write_pope(root, num_images=2)


_MMMU_SPLITS = {"dev": "dev", "val": "validation", "test": "test"}
_SPLITS: dict[str, Callable[[Path], None]] = {one.id: write_refcoco for one in REFCOCO}
_TABLES: dict[str, Callable[[Path], None]] = {
    name: partial(_below, LMU_DATA, write) for name, write in tsv.WRITERS.items()
}
EVERY_WRITER: Mapping[str, Callable[[Path], None]] = {
    "pope": _write_small_pope,
    "mme": write_mme,
    "scienceqa": write_scienceqa,
    "tiny_lvlm": write_tiny_lvlm,
    "seed": write_seed,
    "mmvp": write_mmvp,
    "mvbench": write_mvbench,
    **{f"mmmu-{name}": partial(write_mmmu, split=split) for name, split in _MMMU_SPLITS.items()},
    **vqa.WRITERS,
    **mmbench.WRITERS,
    **open_ended.WRITERS,
    **_SPLITS,
    **_TABLES,
}
"""Task id -> what writes its data below a root; TSV files below :data:`LMU_DATA` there."""


def write_every_task(root: Path) -> None:
    """The data of all tasks."""
    for write in dict.fromkeys(EVERY_WRITER.values()):
        write(root)
