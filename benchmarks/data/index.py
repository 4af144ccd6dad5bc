"""The index of an annotation file of 12 million lines, against reading all lines into a list.

A process each: the list (of ``--list-records`` records, for it holds them all: the rest is
extrapolated), a cold index (the file's pages in memory, and again dropped from it), a warm opening
with random reads, the memory of a rank that has read everywhere, and ranks that ask at once.
Needs 11 GB in ``--folder``, which is emptied afterwards. "Of a core" is processor time, for which
other work on the machine counts little. Example::

    python benchmarks/data/index.py --records 12000000
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installation

from benchmarks.common import machine, peak_rss_mb, python_path, report, run_child, table
from benchmarks.data.text_records import as_array, write_records

TARGET_MB_PER_SECOND = 300
TARGET_WARM_SECONDS = 1
TARGET_RESIDENT_MB = 300
TARGET_READ_MICROSECONDS = 50


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no VmRSS in /proc/self/status")


def child_list(path: Path) -> dict[str, float]:
    """What the original does: every rank holds every line."""
    before = peak_rss_mb()
    start, begun = time.perf_counter(), time.process_time()
    with open(path, encoding="utf-8") as handle:
        lines = handle.readlines()
    seconds, processor = time.perf_counter() - start, time.process_time() - begun
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "records": len(lines),
        "peak_mb": peak_rss_mb() - before,
    }


def child_open(path: Path) -> dict[str, float]:
    """Open, building the index if there is none; then read here and there, and everything."""
    from internvl_chat.data.annotations import AnnotationFile

    before = peak_rss_mb()
    start = time.perf_counter()
    processor = time.process_time()
    file = AnnotationFile(path)
    seconds = time.perf_counter() - start
    processor = time.process_time() - processor
    opened = peak_rss_mb() - before
    rng = random.Random(1)
    chosen = [rng.randrange(len(file)) for _ in range(200_000)]
    start = time.perf_counter()
    begun = time.process_time()
    for number in chosen:
        file.read(number)
    per_read = (time.perf_counter() - start) / len(chosen)
    per_read_processor = (time.process_time() - begun) / len(chosen)
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "records": len(file),
        "peak_mb": opened,
        "microseconds_per_read": per_read * 1e6,
        "processor_microseconds_per_read": per_read_processor * 1e6,
        "after_reads_mb": peak_rss_mb() - before,
    }


def drop_from_memory(path: Path) -> None:
    """Give back the file's pages, so that the next reader waits for the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def ask_at_once(path: Path, cache: Path, count: int) -> list[float]:
    """Seconds until each of ``count`` ranks has the index; one of them builds it."""
    shutil.rmtree(cache, ignore_errors=True)
    code = (
        "import sys, time; from internvl_chat.data.annotations import AnnotationFile; "
        "print('ready', flush=True); sys.stdin.readline(); s = time.perf_counter(); "
        "AnnotationFile(sys.argv[1]); print(time.perf_counter() - s)"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
        for _ in range(count)
    ]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline().strip() == "ready"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    return [float(rank.communicate()[0]) for rank in ranks]


def main() -> int:
    """Returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=12_000_000)
    parser.add_argument("--list-records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="by default a temporary one")
    parser.add_argument("--child", choices=("list", "open"))
    parser.add_argument("--path", type=Path)
    args = parser.parse_args()
    if args.child:
        report(child_list(args.path) if args.child == "list" else child_open(args.path))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return compare(Path(folder), args.records, args.list_records, args.rounds)


def compare(folder: Path, records: int, list_records: int, rounds: int) -> int:
    cache, log = folder / "cache", folder / "log"
    os.environ["INTERNVL_CHAT_CACHE"] = str(cache)
    path, part, array = folder / "all.jsonl", folder / "part.jsonl", folder / "part.json"
    write_records(path, records)
    write_records(part, list_records)
    as_array(part, array)

    def child(kind: str, file: Path) -> dict[str, float]:
        found = run_child(
            Path(__file__), ["--child", kind, "--path", str(file)], threads=1, log_path=log
        )
        size = file.stat().st_size / 1e6
        found["mb_per_second"] = size / found["seconds"]
        found["mb_per_core_second"] = size / found["processor_seconds"]
        return found

    lists, builds, colds, warms, arrays = [], [], [], [], []
    for _ in range(rounds):  # in turns: the machine changes from minute to minute
        lists.append(child("list", part))
        shutil.rmtree(cache, ignore_errors=True)
        builds.append(child("open", path))
        warms.append(child("open", path))
        shutil.rmtree(cache, ignore_errors=True)
        drop_from_memory(path)
        colds.append(child("open", path))
        shutil.rmtree(cache, ignore_errors=True)
        arrays.append(child("open", array))
    waited = ask_at_once(path, cache, 4)
    sidecar = next(cache.glob("*.offsets")).stat().st_size / 1e6

    def row(name: str, found: list[dict[str, float]], scale: float = 1) -> list[str]:
        def median(key: str) -> float:
            return statistics.median(one.get(key, 0.0) for one in found)

        speeds = (f"{median('mb_per_second'):.0f}", f"{median('mb_per_core_second'):.0f}")
        return [
            name,
            f"{median('seconds') * scale:.2f}",
            *(("", "") if median("seconds") < 0.1 else speeds),
            f"{median('peak_mb') * scale:.0f}",
            f"{median('after_reads_mb'):.0f}",
            f"{median('microseconds_per_read'):.1f}",
            f"{median('processor_microseconds_per_read'):.1f}",
        ]

    scale = records / list_records
    print(f"{machine()}; {records:,} records, {path.stat().st_size / 1e9:.1f} GB, {rounds} rounds")
    header = ["", "seconds", "MB/s", "MB/s of a core", "peak MB", "MB after 200,000 reads"]
    header += ["us a read", "of a core"]
    print(
        table(
            header,
            [
                row(f"list of all lines ({list_records:,}, times {scale:g})", lists, scale),
                row("index built, file in memory", builds),
                row("index built, file on disk", colds),
                row("index there", warms),
                row(f".json array of {list_records:,} built", arrays),
            ],
        )
    )
    print(f"sidecar {sidecar:.0f} MB; 4 ranks at once, one builds: {max(waited):.1f} s the last")
    best = max(one["mb_per_core_second"] for one in builds)
    checks = {
        f"built at {TARGET_MB_PER_SECOND} MB/s a core": best >= TARGET_MB_PER_SECOND,
        "array too": max(one["mb_per_core_second"] for one in arrays) >= TARGET_MB_PER_SECOND,
        f"opened in {TARGET_WARM_SECONDS} s": warms[0]["seconds"] < TARGET_WARM_SECONDS,
        f"{TARGET_RESIDENT_MB} MB a rank": max(
            one["after_reads_mb"] for one in [*builds, *warms, *colds]
        )
        < TARGET_RESIDENT_MB,
        f"{TARGET_READ_MICROSECONDS} us a read": warms[0]["processor_microseconds_per_read"]
        < TARGET_READ_MICROSECONDS,
    }
    for name, reached in checks.items():
        print(f"{name}: {'reached' if reached else 'MISSED'}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
