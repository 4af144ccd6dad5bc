"""``data report`` of datasets that grow: seconds, memory and size of the page.

A process each: the page with nothing counted before, the page with the lengths there, and as the
baseline all lines read into a list, which a page made of every record would begin with. Memory is
the peak beyond the imports. Example::

    python benchmarks/data/report_page.py --records 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installation

from benchmarks.common import ROOT, machine, peak_rss_mb, report, run_child, table
from benchmarks.data.text_records import write_records

MODEL = ROOT / "pretrained/internvl-chat-tiny"
MOST_GROWTH_MB = 150
"""Of the peak, from the least to the largest dataset: 16 bytes a record are mapped tables."""


def child_list(path: Path) -> dict[str, float]:
    """Every line in memory."""
    before = peak_rss_mb()
    start = time.perf_counter()
    lines = path.read_bytes().splitlines()
    return {
        "seconds": time.perf_counter() - start,
        "peak_mb": peak_rss_mb() - before,
        "records": len(lines),
    }


def child_page(meta: Path) -> dict[str, float]:
    """The page, as the verb makes it."""
    from internvl_chat.cli.data_check import check_settings
    from internvl_chat.data.report.run import DataReport

    config, tokenizer = check_settings(str(meta), MODEL, [])
    before = peak_rss_mb()
    start, begun = time.perf_counter(), time.process_time()
    page = DataReport(config, tokenizer, num_samples=200, seed=0)
    written = page.write(meta.with_name("report.html"))
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - begun,
        "peak_mb": peak_rss_mb() - before,
        "page_mb": written.num_bytes / 1e6,
        "samples": written.num_shown,
    }


def main() -> int:
    """Returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="by default a temporary one")
    parser.add_argument("--child", choices=("list", "page"))
    parser.add_argument("--path", type=Path)
    args = parser.parse_args()
    if args.child:
        report(child_list(args.path) if args.child == "list" else child_page(args.path))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return compare(Path(folder), args.records)


def compare(folder: Path, sizes: list[int]) -> int:
    """Measure each size; print the table."""
    os.environ["INTERNVL_CHAT_CACHE"] = str(folder / "cache")
    lines, meta = folder / "all.jsonl", folder / "meta.json"
    entry = {"root": "", "annotation": str(lines), "data_augment": False, "repeat_time": 1}
    rows, peaks, pages = [], [], []
    for size in sizes:
        write_records(lines, size)
        meta.write_text(json.dumps({"text": {**entry, "length": size}}))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for name, kind, path in (
            ("all lines in a list", "list", lines),
            ("page, nothing counted", "page", meta),
            ("page, lengths there", "page", meta),
        ):
            found = run_child(
                Path(__file__),
                ["--child", kind, "--path", str(path)],
                threads=1,
                log_path=folder / "log",
            )
            rows.append(
                [
                    f"{size:,}",
                    name,
                    f"{found['seconds']:.1f}",
                    f"{found['peak_mb']:.0f}",
                    f"{found['page_mb']:.2f}" if "page_mb" in found else "",
                ]
            )
        peaks.append(found["peak_mb"])
        pages.append(found["page_mb"])
    print(machine())
    print(table(["records", "", "seconds", "peak MB", "page MB"], rows))
    growth, ratio = max(peaks) - peaks[0], max(pages) / pages[0]
    print(f"page: {growth:.0f} MB more for {max(sizes):,} records, page {ratio:.2f} times as large")
    reached = growth < MOST_GROWTH_MB
    print(f"less than {MOST_GROWTH_MB} MB more: {'reached' if reached else 'MISSED'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
