"""Everything the quickstart trains on and asks about: the custom digits and the general data."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.annotations import DatasetEntry, Record, write_json, write_jsonl, write_meta
from examples.quickstart import digits
from examples.tiny_model.records import (
    FAMILIES,
    Split,
    conversation_record,
    image_names,
    make_sample,
    save_images,
)

JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """How much is written. The same plan always gives the same files."""

    seed: int = 7
    """Not the seed that the shipped model was trained with, so its images do not come back."""
    digit_scans: int = digits.NUM_TRAIN
    digit_looks: int = 4
    digit_held_out: int = 1797 - digits.NUM_TRAIN
    general: int = 2600
    """General training records over all families, by the families' shares."""
    general_held_out: int = 300
    """Held-out questions of each family."""

    @property
    def fingerprint(self) -> str:
        """Names the plan, so that files of another plan are not taken for this one's."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Where the files lie: the folders of the guide, below ``playground``."""

    playground: Path
    name: str

    @property
    def images(self) -> Path:
        """Root of every image."""
        return self.playground / "data" / self.name

    @property
    def annotations(self) -> Path:
        """Folder of the annotation files and of the two meta files."""
        return self.playground / "opensource" / self.name

    @property
    def train_meta(self) -> Path:
        """``--meta_path`` of the training."""
        return self.annotations / "finetune.json"

    @property
    def held_out_meta(self) -> Path:
        """The questions asked before and after, in the same format."""
        return self.annotations / "heldout.json"

    @property
    def stamp(self) -> Path:
        """Says which plan the files were written by; written last."""
        return self.annotations / "plan.json"


def is_written(files: DataFiles, plan: DataPlan) -> bool:
    """Whether the files of this very plan are complete."""
    if not files.stamp.is_file():
        return False
    return bool(json.loads(files.stamp.read_text(encoding="utf-8"))["plan"] == plan.fingerprint)


def write_data(
    files: DataFiles, plan: DataPlan, report: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write images, annotations and the two meta files; the stamp comes last.

    Args:
        files: where.
        plan: what.
        report: told now and then how many records of how many are written.
    """
    shares = {name: math.ceil(plan.general * family.share) for name, family in FAMILIES.items()}
    num_digits = plan.digit_scans * plan.digit_looks + plan.digit_held_out
    total = num_digits + sum(shares.values()) + plan.general_held_out * len(shares)
    report(0, total)
    train, held_out = digits.write_digits(
        files.images,
        files.annotations,
        seed=plan.seed,
        looks=plan.digit_looks,
        num_train=plan.digit_scans,
        num_held_out=plan.digit_held_out,
    )
    done = num_digits
    report(done, total)
    entries: dict[Split, list[DatasetEntry]] = {"train": [train], "heldout": [held_out]}
    for family, share in shares.items():
        counts: dict[Split, int] = {"train": share, "heldout": plan.general_held_out}
        for split, count in counts.items():
            entries[split].append(_write_family(files, plan, family, split, count))
            done += count
            report(done, total)
    write_meta(files.train_meta, entries["train"])
    write_meta(files.held_out_meta, entries["heldout"])
    write_json(files.stamp, {"plan": plan.fingerprint, **asdict(plan)})


def _write_family(
    files: DataFiles, plan: DataPlan, family: str, split: Split, count: int
) -> DatasetEntry:
    """Records 0 ... ``count - 1`` of one family and split."""
    records = [_family_record(files, plan, family, split, index) for index in range(count)]
    annotation = files.annotations / f"{family}_{split}.jsonl"
    write_jsonl(annotation, records)
    return DatasetEntry(name=family, root=files.images, annotation=annotation, length=count)


def _family_record(
    files: DataFiles, plan: DataPlan, family: str, split: Split, index: int
) -> Record:
    """Write a record's images and return its line; a held-out record is its first question."""
    sample = make_sample(plan.seed, family, split, index)
    names = image_names(family, split, index, len(sample.images))
    save_images(files.images, sample, names, quality=JPEG_QUALITY)
    questions = sample.questions[:1] if split == "heldout" else sample.questions
    record = conversation_record(f"{family}-{split}-{index}", names, questions)
    if split == "heldout":
        record["skill"] = questions[0].skill
    return record
