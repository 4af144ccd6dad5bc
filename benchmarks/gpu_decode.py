"""How fast answers are decoded on this GPU, beside what its memory could give.

A step of one row reads every weight of the language model once: the memory's bandwidth limits it.
Makes a checkpoint of random weights under ``--folder``, without a network, loads it as users do,
and times ``chat`` and ``batch_chat`` with steps recorded as CUDA graphs (the default) and step by
step (``disable_compile``). ``docs/performance.md`` says what the columns mean.

    python benchmarks/gpu_decode.py --folder /dev/shm/speed --size lora30
    python benchmarks/gpu_decode.py --folder /tmp/speed --size tiny --device cpu --new_tokens 8
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import RESULT, table
from benchmarks.gpu.card import is_missing
from benchmarks.gpu.checkpoint import make_checkpoint
from benchmarks.gpu.processes import ChildError, follow, start
from benchmarks.gpu.sizes import SIZES, listed
from benchmarks.gpu.table import number
from internvl_chat.machine.peaks import peaks_of

MODES = ("graphs", "eager")
MIN_OF_BANDWIDTH, MIN_OF_BATCH_16 = 0.6, 8.0
HEADER = (
    "mode",
    "rows",
    "tokens/s",
    "ms a step",
    "TB/s",
    "of copy",
    "of data sheet",
    "first token ms",
    "start s",
    "peak GiB",
)


def measure(options: argparse.Namespace, model_dir: Path) -> dict[str, Any]:
    """Run the child; what it had reported counts even if it is cut."""
    spec = options.folder / "decode.json"
    values = {
        "model": str(model_dir),
        "on_gpu": options.device == "cuda",
        "new_tokens": options.new_tokens,
        "modes": options.modes,
        "batches": options.batches,
        "rounds": options.rounds,
    }
    spec.write_text(json.dumps(values), "utf-8")
    found: dict[str, Any] = {"card": {}, "load_seconds": None, "rows": []}

    def is_done(line: str) -> bool:
        if line.startswith(RESULT):
            result = json.loads(line[len(RESULT) :])
            if "mode" in result:
                found["rows"].append(result)
            else:
                found.update(result)
        return False

    try:
        ended = follow(
            start(["-m", "benchmarks.gpu.decoding", str(spec)]),
            log_path=options.folder / "decode.log",
            limit_seconds=options.budget,
            is_done=is_done,
        )
    except ChildError as err:
        print(err, file=sys.stderr)
        ended = "failed"
    if ended != "ended":
        print(f"cut ({ended}): {len(found['rows'])} rows measured", file=sys.stderr)
    return found


def show(found: dict[str, Any]) -> str:
    """The table; shares of the bandwidth measured by a copy and of the data sheet's."""
    copy = found["card"].get("copy_tb_per_second")
    peaks = peaks_of(found["card"].get("name", ""))
    lines = []
    for row in found["rows"]:
        rate = row["bytes_per_second"]
        row["of_copy"] = rate / 1e12 / copy if copy else None
        row["of_data_sheet"] = rate / peaks.memory_bandwidth if peaks else None
        lines.append(
            [
                row["mode"],
                str(row["rows"]),
                number(row["tokens_per_second"], ",.1f"),
                number(row["step_ms"], ".2f"),
                number(rate / 1e12, ".2f"),
                number(row["of_copy"], ".2f"),
                number(row["of_data_sheet"], ".2f"),
                number(row["first_token_ms"], ".0f"),
                number(row["start_seconds"], ".1f"),
                number(row["peak_gib"], ".1f"),
            ]
        )
    return table(HEADER, lines)


def verdicts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Share of the bandwidth at one row, and speed of 16 rows."""
    by_key = {(row["mode"], row["rows"]): row for row in rows}
    checks: list[tuple[str, bool]] = []
    one, many = by_key.get(("graphs", 1)), by_key.get(("graphs", 16))
    if one and one["of_copy"] is not None:
        share = one["of_copy"]
        text = f"one row: {share:.2f} of the memory's bandwidth (>= {MIN_OF_BANDWIDTH})"
        checks.append((text, share >= MIN_OF_BANDWIDTH))
    if one and many:
        ratio = many["tokens_per_second"] / one["tokens_per_second"]
        text = f"16 rows: {ratio:.1f} times the tokens of one (>= {MIN_OF_BATCH_16:.0f})"
        checks.append((text, ratio >= MIN_OF_BATCH_16))
    return checks


def alike(rows: Sequence[dict[str, Any]]) -> str:
    """How many recorded answers are those decoded eagerly. Said, not judged: the weights are random
    and in bf16, so that many tokens are as likely as others but for rounding.

    ``tests/gpu/test_decoding.py`` holds that fp32 answers are the same and bf16 as exact.
    """
    by_key = {(row["mode"], row["rows"]): row["answers"] for row in rows}
    said = []
    for (mode, count), answers in by_key.items():
        eager = by_key.get(("eager", count))
        if mode == "graphs" and eager is not None:
            same = sum(one == other for one, other in zip(answers, eager, strict=True))
            said.append(f"{same} of {len(answers)} answers are those decoded eagerly")
    one, many = by_key.get(("eager", 1)), by_key.get(("eager", 16))
    if said and one and many:
        said.append(f"eagerly, {sum(one[0] == other for other in many)} of 16 are as that of one")
    return "; ".join(said)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if a target is missed on a GPU or nothing was measured."""
    options = _parser().parse_args(argv)
    if options.new_tokens < 2:
        print("--new_tokens: want 2 or more, the first is no step", file=sys.stderr)
        return 2
    if is_missing(options.device):
        print("--device cuda: PyTorch finds no GPU here; --device cpu tries it", file=sys.stderr)
        return 2
    found = measure(options, make_checkpoint(options.folder, options.size))
    card, rows = found["card"], found["rows"]
    if card:
        print(f"{card['name']}, torch {card['torch']}; copy {card['copy_tb_per_second']:.2f} TB/s")
    if rows:
        print(
            f"{options.size}: language model of {rows[0]['weights_gb']:.1f} GB, loaded in ", end=""
        )
        print(f"{found['load_seconds']:.0f} s; answers of {options.new_tokens} tokens")
    print(f"\n{show(found)}\n\n{alike(rows)}")
    checks = verdicts(rows) if options.device == "cuda" else []
    for text, reached in checks:
        print(f"{'ok  ' if reached else 'MISS'} {text}")
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, **found}, indent=1), "utf-8")
    return 0 if rows and all(reached for _, reached in checks) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="all files go here; a checkpoint stays for more")
    add("--size", choices=list(SIZES), default="mid", help=listed())
    add("--modes", nargs="+", choices=MODES, default=MODES)
    add("--batches", type=int, nargs="+", default=[1, 16], help="rows that are answered at once")
    add("--new_tokens", type=int, default=128, help="of every answer")
    add("--rounds", type=int, default=3, help="timed answers; the median counts")
    add("--budget", type=float, default=600.0, help="seconds; then the measurement is cut")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--json", type=Path, help="write all figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
