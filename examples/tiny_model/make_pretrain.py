"""Write the demo's training and held-out data: images, LLaVA-style JSONL files, meta JSON.

    python -m examples.tiny_model.make_pretrain --out work_dirs/pretrain_tiny/data --num 30000

``DIR/meta.json`` lists one dataset for each family of records (see ``records.py``);
``DIR/heldout/FAMILY.jsonl`` holds single questions with the skill that each one tests. What is
written depends on --seed, --num and --heldout only, not on --workers.
"""

import argparse
import itertools
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from examples.annotations import DatasetEntry, Record, image_paths, write_jsonl, write_meta
from examples.tiny_model.records import (
    FAMILIES,
    Sample,
    Split,
    conversation_record,
    image_names,
    make_sample,
    save_images,
)

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95
_CHUNK = 250  # samples a worker makes at a time
_HELDOUT_FACTOR = 12  # images looked at for each wanted question of a skill


def _train_chunk(task: tuple[Path, int, str, range]) -> list[Record]:
    """Images of some training samples written, their records returned."""
    root, seed, family, indices = task
    records = []
    for index in indices:
        sample = make_sample(seed, family, "train", index)
        names = image_names(family, "train", index, len(sample.images))
        save_images(root, sample, names, quality=JPEG_QUALITY)
        records.append(conversation_record(f"{family}_{index:06d}", names, sample.questions))
    return records


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
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for family, count in counts.items():
            chunks = pool.imap(_train_chunk, _chunks(root, seed, family, count))
            records = itertools.chain.from_iterable(chunks)
            write_jsonl(root / "train" / f"{family}.jsonl", records)
            logger.info("%s: %d training records", family, count)
    return counts


def heldout_records(seed: int, family: str, quota: int) -> Iterator[tuple[Sample, Record]]:
    """Single questions of held-out samples, at most ``quota`` for each skill.

    Yields:
        The sample (for its images) and the record: a conversation of one round plus ``skill``.
    """
    split: Split = "heldout"
    taken: Counter[str] = Counter()
    for index in range(_HELDOUT_FACTOR * quota):
        sample = make_sample(seed, family, split, index)
        names = image_names(family, split, index, len(sample.images))
        seen: set[str] = set()
        for place, question in enumerate(sample.questions):
            # One question a skill and image, so that a quota spreads over many images.
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
    for family in FAMILIES:
        records = []
        for sample, record in heldout_records(seed, family, quota):
            save_images(root, sample, image_paths(record), quality=JPEG_QUALITY)
            records.append(record)
        counts[family] = write_jsonl(root / "heldout" / f"{family}.jsonl", records)
    return counts


def write_train_meta(root: Path, counts: dict[str, int]) -> Path:
    """Write ``meta.json``; roots are given as ``root`` is, relative to the working directory.

    "./" would not do: the trainer looks from the working directory first, where it exists too.
    """
    entries = [
        DatasetEntry(
            name=f"demo_{family}",
            root=root,
            annotation=Path("train") / f"{family}.jsonl",
            length=count,
        )
        for family, count in counts.items()
    ]
    path = root / "meta.json"
    write_meta(path, entries)
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
    meta = write_train_meta(args.out, counts)
    total = sum(counts.values()), sum(heldout.values())
    logger.info("%d training and %d held-out records, listed in %s", *total, meta)


if __name__ == "__main__":
    main()
