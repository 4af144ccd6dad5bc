"""Write the demo's training and held-out data: pictures, LLaVA-style JSONL files, meta JSON.

    python -m examples.tiny_model.make_pretrain --out work_dirs/pretrain_tiny/data --num 30000

``DIR/meta.json`` lists one dataset for each family of records (see ``records.py``);
``DIR/heldout/FAMILY.jsonl`` holds single questions with the skill that each one tests. What is
written depends on --seed, --num and --heldout only, not on --workers.
"""

import argparse
import json
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from examples.tiny_model.records import (
    FAMILIES,
    Sample,
    Split,
    conversation_record,
    image_names,
    make_sample,
)

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95
_CHUNK = 250  # samples a worker makes at a time
_HELDOUT_FACTOR = 12  # pictures looked at for each wanted question of a skill


def save_images(root: Path, sample: Sample, names: list[str]) -> None:
    """Write a sample's pictures under ``root``."""
    for image, name in zip(sample.images, names, strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=JPEG_QUALITY)


def dumps(record: dict[str, object]) -> str:
    """One line of JSON."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def _train_chunk(task: tuple[Path, int, str, range]) -> str:
    """Pictures of some training samples written, their lines returned."""
    root, seed, family, indices = task
    lines = []
    for index in indices:
        sample = make_sample(seed, family, "train", index)
        names = image_names(family, "train", index, len(sample.images))
        save_images(root, sample, names)
        lines.append(dumps(conversation_record(f"{family}_{index:06d}", names, sample.questions)))
    return "".join(lines)


def _chunks(
    root: Path, seed: int, family: str, count: int
) -> Iterator[tuple[Path, int, str, range]]:
    for start in range(0, count, _CHUNK):
        yield root, seed, family, range(start, min(start + _CHUNK, count))


def write_train(root: Path, *, seed: int, num: int, workers: int) -> dict[str, int]:
    """Write ``train/FAMILY.jsonl`` with the families' shares of ``num`` records.

    Returns:
        Records by family.
    """
    counts = {name: round(num * family.share) for name, family in FAMILIES.items()}
    (root / "train").mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for family, count in counts.items():
            with open(root / "train" / f"{family}.jsonl", "w", encoding="utf-8") as file:
                for lines in pool.imap(_train_chunk, _chunks(root, seed, family, count)):
                    file.write(lines)
            logger.info("%s: %d training records", family, count)
    return counts


def heldout_records(
    seed: int, family: str, quota: int
) -> Iterator[tuple[Sample, dict[str, object]]]:
    """Single questions of held-out samples, at most ``quota`` for each skill.

    Yields:
        The sample (for its pictures) and the record: a conversation of one round plus ``skill``.
    """
    split: Split = "heldout"
    taken: Counter[str] = Counter()
    for index in range(_HELDOUT_FACTOR * quota):
        sample = make_sample(seed, family, split, index)
        names = image_names(family, split, index, len(sample.images))
        seen: set[str] = set()
        for place, question in enumerate(sample.questions):
            # One question a skill and picture, so that a quota spreads over many pictures.
            if question.skill in seen or taken[question.skill] >= quota:
                continue
            seen.add(question.skill)
            taken[question.skill] += 1
            identity = f"{family}_heldout_{index:06d}_{place}"
            yield (
                sample,
                conversation_record(identity, names, [question]) | {"skill": question.skill},
            )


def write_heldout(root: Path, *, seed: int, quota: int) -> dict[str, int]:
    """Write ``heldout/FAMILY.jsonl``; returns records by family."""
    counts = {}
    (root / "heldout").mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        lines = []
        for sample, record in heldout_records(seed, family, quota):
            images = record.get("image", [])
            save_images(root, sample, [images] if isinstance(images, str) else images)
            lines.append(dumps(record))
        (root / "heldout" / f"{family}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts[family] = len(lines)
    return counts


def write_meta(root: Path, counts: dict[str, int]) -> Path:
    """Write ``meta.json``; roots are given as ``root`` is, relative to the working directory.

    "./" would not do: the trainer looks from the working directory first, where it exists too.
    """
    meta = {
        f"demo_{family}": {
            "root": f"{root.as_posix()}/",
            "annotation": f"train/{family}.jsonl",
            "data_augment": False,
            "repeat_time": 1,
            "length": count,
        }
        for family, count in counts.items()
    }
    path = root / "meta.json"
    path.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--num", type=int, default=30000, help="training records of all families")
    parser.add_argument("--heldout", type=int, default=200, help="held-out questions of a skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    counts = write_train(args.out, seed=args.seed, num=args.num, workers=args.workers)
    heldout = write_heldout(args.out, seed=args.seed, quota=args.heldout)
    meta = write_meta(args.out, counts)
    total = sum(counts.values()), sum(heldout.values())
    logger.info("%d training and %d held-out records, listed in %s", *total, meta)


if __name__ == "__main__":
    main()
