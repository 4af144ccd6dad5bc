"""``data check`` against the plainest way to look at every record, each in a process of its own.

- text: a million lines, and a quarter of them for the memory, against reading the file and
  ``json.loads`` of every line in one process;
- ``--decode``: JPEGs of 640 x 480 against opening and decoding each with Pillow in one process;
- ``--tokenizer``: against counting the same records' lengths (``data index``).

"Processor" is processor time of all processes together, for which other work on the machine counts
little. Example::

    python benchmarks/data/check_speed.py --records 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installation

from benchmarks.common import ROOT, machine, peak_rss_mb, report, run_child, table
from benchmarks.data.text_records import write_records

TARGET_SECONDS_PER_MILLION = 120
TARGET_GROWTH_MB = 30
_BLOCK = 100_000
_TINY = ROOT / "pretrained" / "internvl-chat-tiny"


def write_text(folder: Path, count: int) -> Path:
    """Distinct text records and their meta."""
    block = folder / "block.jsonl"
    write_records(block, min(count, _BLOCK))
    lines = block.read_bytes().splitlines()
    path = folder / f"text{count}.jsonl"
    with open(path, "wb") as target:
        for number in range(count):
            again = b"%d" % (number // len(lines))
            line = lines[number % len(lines)]
            line = line.replace(b'{"id": ', b'{"id": 9' + again, 1).replace(b'?"', again + b'?"')
            target.write(line + b"\n")
    block.unlink()
    return write_meta(path, count)


def write_images(folder: Path, count: int) -> Path:
    """Records of a JPEG each, and their meta."""
    from PIL import Image

    rng = random.Random(0)
    rows = []
    for number in range(count):
        noise = Image.effect_noise((160, 120), 60).resize((640, 480))
        name = f"{number}.jpg"
        Image.merge("RGB", (noise, noise, noise)).save(folder / name, quality=rng.randint(70, 95))
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"No {number}."}]
        record = {"image": name, "width": 640, "height": 480, "conversations": turns}
        rows.append(json.dumps(record))
    path = folder / "images.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return write_meta(path, count)


def write_meta(path: Path, count: int) -> Path:
    entry = {
        "root": str(path.parent),
        "annotation": str(path),
        "data_augment": False,
        "repeat_time": 1,
        "length": count,
    }
    meta = path.with_suffix(".meta.json")
    meta.write_text(json.dumps({"mine": entry}))
    return meta


def annotation_of(meta: Path) -> Path:
    return Path(json.loads(meta.read_text())["mine"]["annotation"])


def child_json(meta: Path) -> int:
    """Read and parse every line."""
    count = 0
    with open(annotation_of(meta), "rb") as handle:
        for line in handle:
            json.loads(line)
            count += 1
    return count


def child_pillow(meta: Path) -> int:
    """Open and decode every image."""
    from PIL import Image

    path = annotation_of(meta)
    names = [json.loads(line)["image"] for line in path.read_bytes().splitlines()]
    for name in names:
        with Image.open(path.parent / name) as image:
            image.convert("RGB")
    return len(names)


def child_check(meta: Path, *, decode: bool, tokenizer: bool) -> int:
    """The check as the command runs it."""
    from internvl_chat.cli.data_check import check_settings
    from internvl_chat.data.check.run import DataCheck

    config, loaded = check_settings(str(meta), _TINY if tokenizer else None, [])
    run = DataCheck(config, tokenizer=loaded, decode=decode)
    for _ in run.findings():
        pass
    if run.num_errors:
        raise RuntimeError(f"{run.num_errors} errors in clean data")
    return run.datasets[0].counts.num_records


def child_lengths(meta: Path) -> int:
    """Counting tokens as training does ahead of a run."""
    from internvl_chat.cli.data_check import check_settings
    from internvl_chat.data.annotations import AnnotationFile
    from internvl_chat.data.encode import Encoder
    from internvl_chat.data.lengths import token_lengths
    from internvl_chat.data.meta import load_meta

    config, loaded = check_settings(str(meta), _TINY, [])
    spec = load_meta(meta)[0]
    encoder = Encoder(loaded, config.encode)
    return len(token_lengths(spec, AnnotationFile(spec.annotation), encoder, config.media).tokens)


def child(what: str, meta: Path) -> dict[str, Any]:
    """Run one side, imports left out of its time but not of its memory."""
    sides = {
        "json": lambda: child_json(meta),
        "pillow": lambda: child_pillow(meta),
        "lengths": lambda: child_lengths(meta),
        "text": lambda: child_check(meta, decode=False, tokenizer=False),
        "decode": lambda: child_check(meta, decode=True, tokenizer=False),
        "tokens": lambda: child_check(meta, decode=False, tokenizer=True),
    }
    if what not in ("json", "pillow"):
        import internvl_chat.cli.data_check
        import internvl_chat.data.check.run
        import internvl_chat.train.parsing  # noqa: F401
    start, begun = time.perf_counter(), os.times()
    count = sides[what]()
    ended = os.times()
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return {
        "seconds": time.perf_counter() - start,
        "processor": sum(ended[:4]) - sum(begun[:4]),
        "records": count,
        "peak_mb": peak_rss_mb(),
        "child_mb": largest_child,
    }


def measure(what: str, meta: Path, folder: Path) -> dict[str, Any]:
    """One side in a fresh process with an empty cache."""
    os.environ["INTERNVL_CHAT_CACHE"] = str(folder / f"cache-{what}-{meta.stem}")
    arguments = ["--child", what, "--meta", str(meta)]
    return run_child(Path(__file__), arguments, threads=1, log_path=folder / "log")


def row(name: str, found: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    ratio = "" if base is None else f"{base['seconds'] / found['seconds']:.2f}"
    per_record = found["processor"] / found["records"] * 1e6
    return [
        name,
        f"{found['records']}",
        f"{found['seconds']:.1f}",
        ratio,
        f"{per_record:.0f}",
        f"{found['peak_mb']:.0f}",
        f"{found['child_mb']:.0f}",
    ]


def main() -> int:
    """Returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--token-records", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="by default a temporary one")
    parser.add_argument("--child")
    parser.add_argument("--meta", type=Path)
    args = parser.parse_args()
    if args.child:
        report(child(args.child, args.meta))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        metas = {
            "n": write_text(folder, args.records // 4),
            "4n": write_text(folder, args.records),
            "tokens": write_text(folder, args.token_records),
            "images": write_images(folder, args.images),
        }
        base = measure("json", metas["4n"], folder)
        small, whole = (measure("text", metas[size], folder) for size in ("n", "4n"))
        pillow, decoded = (measure(what, metas["images"], folder) for what in ("pillow", "decode"))
        lengths, tokens = (measure(what, metas["tokens"], folder) for what in ("lengths", "tokens"))
    rows = [
        row("json.loads of every line, one process", base, None),
        row("check, a quarter of the lines", small, None),
        row("check", whole, base),
        row("Pillow, one process", pillow, None),
        row("check --decode", decoded, pillow),
        row("counting lengths", lengths, None),
        row("check --tokenizer", tokens, lengths),
    ]
    print(machine())
    header = ["", "records", "s", "times as fast", "processor µs/record", "peak MB", "a child's MB"]
    print(table(header, rows))
    per_million = whole["seconds"] / whole["records"] * 1e6
    growth = max(whole[key] - small[key] for key in ("peak_mb", "child_mb"))
    print(f"a million lines: {per_million:.0f} s (target: {TARGET_SECONDS_PER_MILLION})")
    print(f"memory, four times as many lines: {growth:+.0f} MB (target: {TARGET_GROWTH_MB})")
    return int(per_million > TARGET_SECONDS_PER_MILLION or growth > TARGET_GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
