"""Speed and memory of ``data import``, ``convert-boxes`` and ``split``, as files grow.

Each measurement is a process of its own, systems in turns, on a JSON array or JSON lines of
generated ShareGPT records:

- **plain**: the usual script: ``json.load`` (or a list of all lines), a loop, ``json.dump``;
- **ours**: the verb's function: every record checked as training checks it.

Speed is in records a second of processor time, so that a busy machine does not change it. Memory is
the peak above what the imports take. Example::

    python benchmarks/data/convert.py --records 20000 80000
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installation

from benchmarks.common import machine, peak_rss_mb, report, run_child, table
from internvl_chat.data.convert.box_files import convert_file
from internvl_chat.data.convert.importing import ImportPlan, import_records
from internvl_chat.data.convert.splitting import split_records

WORDS = ("the", "image", "shows", "a", "small", "red", "house", "beside", "two", "large", "trees")


def write_sharegpt(path: Path, count: int) -> None:
    """Records of about 1.2 kB, a box in each."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            rounds = []
            for _ in range(3):
                text = " ".join(generator.choices(WORDS, k=25))
                rounds.append({"from": "human", "value": text})
                rounds.append({"from": "gpt", "value": f"{text} [0.1, 0.25, 0.5, 0.75]"})
            rounds[0]["value"] = f"<image>{rounds[0]['value']}"
            record = {"conversations": rounds, "images": [f"{number // 2}.jpg"], "n": number}
            file.write(json.dumps(record) + "\n")


def plain_import(source: Path, folder: Path) -> None:
    """All in memory, nothing checked."""
    with source.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with (folder / "own.jsonl").open("w", encoding="utf-8") as out:
        for row in rows:
            row["image"] = row.pop("images")[0]
            out.write(json.dumps(row) + "\n")


def our_import(source: Path, folder: Path) -> None:
    """``data import --from sharegpt``."""
    import_records(
        ImportPlan(
            source=source,
            target=folder / "own.jsonl",
            source_format="sharegpt",
            image_root=None,
            meta_path=None,
            dataset_name=None,
            common_question=None,
            named_columns={},
            group_column=None,
            reference_split="train",
            train_masked=False,
            state_sizes=False,
        )
    )


def our_boxes(source: Path, folder: Path) -> None:
    """``data convert-boxes --from unit --to 1000``."""
    convert_file(source, folder / "boxes.jsonl", ("unit", "1000"))


def our_split(source: Path, folder: Path) -> None:
    """``data split --val 0.1 --by image``."""
    records = folder / "records.jsonl"
    records.symlink_to(source)
    split_records(records, folder, share=0.1, seed=0, by="image")


SYSTEMS: dict[str, Callable[[Path, Path], None]] = {
    "plain import": plain_import,
    "data import": our_import,
    "data convert-boxes": our_boxes,
    "data split": our_split,
}


def measure(system: str, source: Path) -> None:
    """In a process of its own: processor seconds, and megabytes above the imports."""
    before = peak_rss_mb()
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        start = time.process_time()
        SYSTEMS[system](source, Path(folder))
        seconds = time.process_time() - start
    report({"seconds": seconds, "peak_mb": peak_rss_mb() - before})


def main() -> None:
    """Measure each system on each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--child", nargs=2, metavar=("SYSTEM", "FILE"))
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.child[0], Path(arguments.child[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for count in arguments.records:
            sources.append(Path(folder, f"{count}.jsonl"))
            write_sharegpt(sources[-1], count)
        for system in SYSTEMS:
            cells = [system]
            for source, count in zip(sources, arguments.records, strict=True):
                log = Path(folder, "log")
                child = ["--child", system, str(source)]
                result = run_child(Path(__file__), child, threads=1, log_path=log)
                rate = count / result["seconds"]
                cells += [f"{rate:,.0f}", f"{result['peak_mb']:.0f}"]
            rows.append(cells)
        sizes = [f"{source.stat().st_size / 1e6:.0f} MB" for source in sources]
    header = ["", *(f"{size}: {what}" for size in sizes for what in ("records/s", "peak MB"))]
    print(machine())
    print(table(header, rows))


if __name__ == "__main__":
    main()
