"""Counting the tokens of a million text records, against tokenizing them one by one.

A process each: transformers' tokenizer called record by record (of ``--loop-records``; the rest is
extrapolated), ``token_lengths`` in one process and in as many as there are cores, the same again
from the cache, and a count that is killed half-way and continued. Needs 1 GB in ``--folder``, which
is emptied afterwards. Ratios are of processor time, which other work on the machine changes least.
Example::

    python benchmarks/data/lengths.py --records 1000000
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without an installation

from benchmarks.common import ROOT, machine, peak_rss_mb, report, run_child, table
from benchmarks.data.text_records import write_records

TARGET_SECONDS, CORES = 120, 2
MAX_SEQ_LENGTH = 2048


def parts(path: Path, model: Path) -> tuple[Any, Any, Any, Any]:
    """Dataset, file, encoder and media settings, as training has them for this checkpoint."""
    from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer
    from internvl_chat.config import EncodeConfig
    from internvl_chat.data.annotations import AnnotationFile
    from internvl_chat.data.encode import Encoder
    from internvl_chat.data.meta import DatasetSpec
    from internvl_chat.train.arguments import DataArguments, data_config

    tokenizer = load_tokenizer(str(model))
    add_special_tokens(tokenizer)
    arguments = DataArguments(meta_path="meta.json", max_seq_length=MAX_SEQ_LENGTH)
    config = data_config(arguments, num_image_token=256, meta_path="meta.json")
    assert isinstance(config.encode, EncodeConfig)
    spec = DatasetSpec(name="text", root="", annotation=str(path))
    return spec, AnnotationFile(path), Encoder(tokenizer, config.encode), config.media


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def child_loop(path: Path, model: Path, count: int) -> dict[str, Any]:
    """Parse, render and tokenize one record after the other with transformers' tokenizer."""
    from internvl_chat.data.schema import parse_record

    _, file, encoder, _ = parts(path, model)
    tokenizer = encoder.tokens.tokenizer
    start, begun = time.perf_counter(), processor_seconds()
    total = 0
    for number in range(count):
        raw, where = file.read(number)
        record = parse_record(raw, where=where)
        text = encoder.render(record.turns, where=where).text
        total += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": processor_seconds() - begun,
        "tokens": total,
    }


def child_count(path: Path, model: Path, processes: int, kill_after: int) -> dict[str, Any]:
    """Count all; die on the way once ``kill_after`` records are kept."""
    from internvl_chat.data.length_journal import CountedChunk, LengthJournal
    from internvl_chat.data.lengths import token_lengths

    spec, file, encoder, media = parts(path, model)
    if kill_after:
        append = LengthJournal.append

        def append_or_die(journal: LengthJournal, chunk: CountedChunk) -> None:
            append(journal, chunk)
            if journal.num_records >= kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        LengthJournal.append = append_or_die  # type: ignore[method-assign]
    start, begun = time.perf_counter(), processor_seconds()
    found = token_lengths(spec, file, encoder, media, num_processes=processes)
    seconds, processor = time.perf_counter() - start, processor_seconds() - begun
    digest = hashlib.sha256(found.tokens.tobytes()).hexdigest()[:16]
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_mb": peak_rss_mb(),
        "digest": digest,
        "mean": float(found.tokens.mean()),
    }


def main() -> int:
    """Returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--loop-records", type=int, default=20_000)
    parser.add_argument("--model", type=Path, default=ROOT / "pretrained/internvl-chat-tiny")
    parser.add_argument("--folder", type=Path, help="by default a temporary one")
    parser.add_argument("--child", choices=("loop", "count"))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kill-after", type=int, default=0)
    args = parser.parse_args()
    if args.child == "loop":
        report(child_loop(args.path, args.model, args.loop_records))
        return 0
    if args.child:
        report(child_count(args.path, args.model, args.processes, args.kill_after))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> int:
    path, cache = folder / "text.jsonl", folder / "cache"
    os.environ["INTERNVL_CHAT_CACHE"] = str(cache)
    write_records(path, args.records)

    def child(kind: str, *options: str) -> dict[str, Any]:
        given = ["--child", kind, "--path", str(path), "--model", str(args.model)]
        given += ["--loop-records", str(args.loop_records), *options]
        return run_child(Path(__file__), given, threads=1, log_path=folder / "log")

    scale = args.records / args.loop_records
    loop = child("loop")
    both = child("count", "--processes", str(args.processes))
    again = child("count")
    shutil.rmtree(cache)
    try:
        child("count", "--processes", str(args.processes), "--kill-after", str(args.records // 2))
    except RuntimeError:
        pass
    else:
        raise RuntimeError("the count was done before it was killed")
    continued = child("count", "--processes", str(args.processes))
    rows = [
        [
            f"one by one ({args.loop_records:,}, times {scale:g})",
            f"{loop['seconds'] * scale:.0f}",
            f"{loop['processor_seconds'] * scale:.0f}",
            "1.0",
            "",
        ],
        *(
            [
                name,
                f"{one['seconds']:.1f}",
                f"{one['processor_seconds']:.1f}",
                f"{loop['processor_seconds'] * scale / max(one['processor_seconds'], 0.001):.1f}",
                f"{one['peak_mb']:.0f}",
            ]
            for name, one in {
                f"counted in {args.processes} processes": both,
                "from the cache": again,
                "continued after a kill half-way": continued,
            }.items()
        ),
    ]
    size = path.stat().st_size / 1e6
    print(f"{machine()}; {args.records:,} records, {size:.0f} MB, {both['mean']:.0f} tokens each")
    header = ["", "seconds", "of processors", "times as fast", "peak MB, imports included"]
    print(table(header, rows))
    same = both["digest"] == again["digest"] == continued["digest"]
    each = both["processor_seconds"] / CORES * 1_000_000 / args.records
    in_time = each <= TARGET_SECONDS
    less = continued["processor_seconds"] < 0.8 * both["processor_seconds"]
    print(f"a million in {TARGET_SECONDS} s of {CORES} cores: {each:.0f}", end=", ")
    print("reached" if in_time else "MISSED")
    print(f"continued with less work, to the same counts: {'yes' if same and less else 'NO'}")
    return 0 if in_time and same and less else 1


if __name__ == "__main__":
    sys.exit(main())
