"""How fast training is on this GPU: a plain loop and our trainer, on the same batches.

Makes a checkpoint of random weights and data of its own under ``--folder``, without a network,
measures what the card reaches (a matrix product, a copy in memory), runs each row for some steps
in a process of its own, and prints tokens per second, their ratio to the plain loop, seconds per
step, MFU and peak memory. ``docs/performance.md`` says what the columns mean.

    python benchmarks/gpu_train.py --folder /dev/shm/speed --size mid
    python benchmarks/gpu_train.py --folder /dev/shm/speed --rows plain packed-zero3 --profile
    python benchmarks/gpu_train.py --folder /tmp/speed --size tiny --device cpu
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import RESULT
from benchmarks.gpu.card import is_missing
from benchmarks.gpu.checkpoint import make_checkpoint
from benchmarks.gpu.processes import ChildError, end_group, follow, start
from benchmarks.gpu.records import META, write_records
from benchmarks.gpu.rows import DEFAULT_ROWS, ROWS, Workplace
from benchmarks.gpu.sizes import SIZES, listed
from benchmarks.gpu.table import (
    complete,
    left_out,
    show_profiles,
    show_table,
    verdicts,
)
from benchmarks.gpu.trained import follow_trainer, start_trainer
from internvl_chat.machine.peaks import peaks_of

ROW_SECONDS = 240.0


class Measurement:
    """Files, clock and results of one call."""

    def __init__(self, options: argparse.Namespace, place: Workplace) -> None:
        self.options, self.place = options, place
        self.folder: Path = options.folder
        self.begin = time.monotonic()
        self.card: dict[str, Any] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.begun: set[str] = set()
        self.waiting: dict[str, subprocess.Popen[str]] = {}

    def left(self) -> float:
        """Seconds of the budget that are left."""
        budget = self.options.budget
        return float("inf") if budget is None else budget - (time.monotonic() - self.begin)

    def run(self) -> None:
        """All rows, the plain ones first: the others are compared with them."""
        names = list(dict.fromkeys(self.options.rows))
        plain = [name for name in names if ROWS[name].is_plain]
        trained = [name for name in names if name not in plain]
        self._start(trained[: self.options.ahead])
        try:
            if plain or not self.options.no_card:
                self._attempt(", ".join(plain), lambda: self._run_plain(plain))
            skipped = []
            for number, name in enumerate(trained):
                if self.left() <= 0:
                    skipped.append(name)
                    continue
                self._start(trained[number : number + self.options.ahead])
                self._attempt(name, lambda name=name: self._run_trainer(name))
        finally:
            for child in self.waiting.values():
                end_group(child)
        if skipped:
            print(left_out(skipped, self.options.budget), file=sys.stderr)

    def _start(self, names: Sequence[str]) -> None:
        """Start the processes of these rows, which wait for their turn."""
        for name in names:
            if name not in self.begun and self.left() > 0:
                self.begun.add(name)
                self.waiting[name] = start_trainer(
                    ROWS[name],
                    self.place,
                    folder=self.folder,
                    num_steps=self.options.steps,
                    profile=self.options.profile,
                    extra=self.options.flags.split(),
                )

    def _attempt(self, names: str, work: Any) -> None:
        """A row that fails (out of memory, for one) leaves the others standing."""
        start = time.monotonic()
        try:
            work()
        except ChildError as err:
            print(f"{names} failed: {err}", file=sys.stderr)
        print(f"{names}: {time.monotonic() - start:.0f} s in all", file=sys.stderr)

    def _limit(self) -> float:
        return min(self.left(), self.options.row_seconds)

    def _run_plain(self, names: Sequence[str]) -> None:
        """The card and all plain rows, in one process that loads the model once."""
        spec = self.folder / "plain.json"
        arguments = {n: self.place.arguments(ROWS[n], self.folder / "plain-run") for n in names}
        values = {
            "rows": arguments,
            "on_gpu": self.place.on_gpu,
            "steps": self.options.steps,
            "skip": self.options.skip,
            "profile": self.options.profile,
            "card": not self.options.no_card,
        }
        spec.write_text(json.dumps(values), "utf-8")
        found: list[dict[str, Any]] = []

        def is_done(line: str) -> bool:
            if line.startswith(RESULT):
                found.append(json.loads(line[len(RESULT) :]))
                self._keep(found[-1])
            return False

        words = ["-m", "benchmarks.gpu.plain_loop", str(spec)]
        limit = min(self.left(), self.options.row_seconds * max(1, len(names)))
        follow(
            start(words), log_path=self.folder / "plain.log", limit_seconds=limit, is_done=is_done
        )

    def _keep(self, result: dict[str, Any]) -> None:
        if "card" in result:
            self.card = result["card"]
            return
        self.rows[result["row"]] = result
        speed = result.get("tokens_per_second")
        said = f"{speed:,.0f} tokens/s" if speed else result.get("note", "")
        print(f"{result['row']}: {said}", file=sys.stderr)

    def _run_trainer(self, name: str) -> None:
        row = ROWS[name]
        known = self.rows.get(row.reference, {}).get("step_tokens", ())
        result = follow_trainer(
            row,
            self.waiting.pop(name),
            folder=self.folder,
            num_steps=self.options.steps,
            skip=self.options.skip,
            limit_seconds=self._limit(),
            profile=self.options.profile,
            step_tokens=known,
        )
        self._keep(result)


def prepare(options: argparse.Namespace) -> Workplace:
    """Checkpoint and data, made where they are missing."""
    size, folder = SIZES[options.size], options.folder
    folder.mkdir(parents=True, exist_ok=True)
    model_dir = make_checkpoint(folder, options.size)
    data_dir = folder / f"data-{options.size}-{options.records}"
    if not (data_dir / META).is_file():
        shutil.rmtree(data_dir, ignore_errors=True)  # of a call that was ended half-way
        write_records(
            data_dir,
            num_records=options.records,
            answer_tokens=size.answer_tokens,
            longest=size.max_seq_length // 2,
        )
    return Workplace(
        size=size,
        model_dir=model_dir,
        meta_path=data_dir / META,
        on_gpu=options.device == "cuda",
        num_gpus=options.gpus,
        pack_tokens=options.pack_tokens or size.pack_tokens,
        packs_per_step=options.packs or size.packs_per_step,
        packs_together=options.packs_together,
        grouped_per_step=options.batch or size.grouped_per_step,
        grouped_micro_batch=options.micro_batch or size.grouped_micro_batch,
        num_workers=options.workers,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if a target is missed on a GPU or nothing was measured."""
    options = _parser().parse_args(argv)
    if options.skip >= options.steps:
        print(f"--skip {options.skip} leaves none of --steps {options.steps}", file=sys.stderr)
        return 2
    if (options.packs or SIZES[options.size].packs_per_step) % options.packs_together:
        print(f"--packs_together {options.packs_together} does not divide a step", file=sys.stderr)
        return 2
    if is_missing(options.device):
        print("--device cuda: PyTorch finds no GPU here; --device cpu tries it", file=sys.stderr)
        return 2
    measurement = Measurement(options, prepare(options))
    measurement.run()
    rows, card = measurement.rows, measurement.card
    peaks = peaks_of(card.get("name", ""))
    peak = peaks.flops("bf16") if peaks else None
    matmul = card["matmul_tflops"] * 1e12 if card else None
    rows = complete(rows, peak=peak, matmul=matmul)
    print(_head(options, card, peak), show_table(rows), show_profiles(rows), sep="\n\n")
    lora = SIZES[options.size].lora_rank > 0
    checks = verdicts(rows, lora=lora) if options.device == "cuda" else []
    for text, reached in checks:
        print(f"{'ok  ' if reached else 'MISS'} {text}")
    if options.json:
        found = {"size": options.size, "card": card, "peak_flops": peak, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1), "utf-8")
    return 0 if rows and all(reached for _, reached in checks) else 1


def _head(options: argparse.Namespace, card: dict[str, Any], peak: float | None) -> str:
    size = f"{options.size}: {SIZES[options.size].summary}"
    if not card:
        return size
    of_peak = f" ({card['matmul_tflops'] * 1e12 / peak:.0%} of its peak)" if peak else ""
    return (
        f"{card['name']}, torch {card['torch']}; bf16 matrix product "
        f"{card['matmul_tflops']:.0f} TFLOP/s{of_peak}, copy in memory "
        f"{card['copy_tb_per_second']:.2f} TB/s\n{size}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="all files go here; a checkpoint stays for more")
    add("--size", choices=list(SIZES), default="mid", help=listed())
    add("--rows", nargs="+", choices=list(ROWS), default=DEFAULT_ROWS, metavar="ROW")
    add("--steps", type=int, default=12, help="optimizer steps of a row")
    add("--skip", type=int, default=4, help="first steps that do not count")
    add("--budget", type=float, help="seconds; rows that are not begun by then are left out")
    add("--row_seconds", type=float, default=ROW_SECONDS, help="a row is cut after this long")
    add("--profile", action="store_true", help="trace one more step of every row")
    add("--flags", default="", help="appended to the command of our trainer, in one word")
    add("--packs", type=int, help="packs per step of packed rows")
    add("--packs_together", type=int, default=1, help="packs of a forward pass")
    add("--pack_tokens", type=int, help="tokens of a pack")
    add("--batch", type=int, help="samples per step of grouped rows")
    add("--micro_batch", type=int, help="samples per forward pass of grouped rows")
    add("--records", type=int, default=600, help="records of the data")
    add("--workers", type=int, default=4, help="data loader processes of our trainer")
    add("--ahead", type=int, default=4, help="processes that are started before their turn")
    add("--gpus", type=int, default=1, help="GPUs of our trainer's rows")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--no_card", action="store_true", help="leave the card's own figures out")
    add("--json", type=Path, help="write all figures here")
    return parser


if __name__ == "__main__":
    # Told to end (by `timeout`, say), it ends its children, which would keep the GPU's memory.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
