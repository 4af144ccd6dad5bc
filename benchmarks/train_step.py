"""Tokens per second and peak memory of a training step: a bare loop, our trainer, TRL.

Each run is a process of its own; the systems take turns, so that a disturbance of the machine hits
all of them. Times begin after ``--skip`` steps. The bare loop (``step_speed/bare.py``) trains on
the very batches that our trainer packs, in its order, from the same weights: equal losses show
that both do the same work. TRL (``pip install trl datasets``; left out if missing) trains the same
records with transformers' own InternVL of the same size, padded, without recomputing activations.

    python benchmarks/train_step.py --rounds 3
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import machine, median_and_all, peak_rss_mb, report, run_child, table
from benchmarks.step_speed.workload import Workload

SYSTEMS = {
    "bare": "bare PyTorch loop, packed, in memory",
    "ours": "our trainer, packed, from files",
    "trl": "TRL SFTTrainer, native InternVL",
    "trl-checkpointing": "TRL with its default, recomputing activations",
}
DEFAULT_SYSTEMS = ("bare", "ours", "trl")
MIN_OF_BARE, MIN_OF_TRL, MAX_MEMORY = 0.90, 1.7, 1.10
MAX_LOSS_DIFFERENCE = 1e-3
"""Relative, of a step: fp32, other kernels for norms and the vocabulary loss, 15 AdamW steps."""


def child(system: str, workload: Workload, output_dir: Path, num_steps: int) -> None:
    """Run one system in this process and report its steps."""
    if system == "prepare":
        from benchmarks.step_speed import ours
        from benchmarks.step_speed import workload as wl

        wl.make_workload(workload.root, num_samples=8 * num_steps, seed=wl.SEED)
        ours.collate_batches(workload, workload.root / "batches.pt", num_steps)
        report({})
        return
    if system == "bare":
        from benchmarks.step_speed import bare

        result = bare.run(workload, workload.root / "batches.pt", num_steps=num_steps)
    elif system == "ours":
        from benchmarks.step_speed import ours

        result = ours.run(workload, output_dir, num_steps=num_steps)
    else:
        from benchmarks.step_speed import trl_native

        checkpointing = system == "trl-checkpointing"
        result = trl_native.run(
            workload, output_dir, num_steps=num_steps, checkpointing=checkpointing
        )
    report({"peak_rss_mb": peak_rss_mb(), **result})


def tokens_per_second(run: dict[str, Any], skip: int) -> float:
    """Tokens that are no padding, over the steps after the first ``skip``."""
    return sum(run["tokens"][skip:]) / sum(run["step_seconds"][skip:])


def summarize(runs: dict[str, list[dict[str, Any]]], skip: int) -> dict[str, dict[str, Any]]:
    """Medians by system."""
    figures = {}
    for system, results in runs.items():
        speeds = [tokens_per_second(result, skip) for result in results]
        figures[system] = {
            "tokens_per_second": statistics.median(speeds),
            "all": speeds,
            "step_seconds": statistics.median(
                second for result in results for second in result["step_seconds"][skip:]
            ),
            "padding": 1 - sum(results[0]["tokens"]) / sum(results[0]["padded"]),
            "peak_rss_mb": statistics.median(result["peak_rss_mb"] for result in results),
            "losses": results[0]["losses"],
        }
    return figures


def show(figures: dict[str, dict[str, Any]]) -> str:
    """The table of all systems."""
    bare = figures.get("bare", {}).get("tokens_per_second")
    rows = [
        [
            SYSTEMS[system],
            median_and_all(found["all"]),
            f"{found['tokens_per_second'] / bare:.2f}" if bare else "-",
            f"{found['step_seconds']:.2f}",
            f"{found['padding']:.2f}",
            f"{found['peak_rss_mb']:,.0f}",
        ]
        for system, found in figures.items()
    ]
    header = ["system", "tokens/s, median (all)", "of bare", "s/step", "padding", "peak RSS MB"]
    return table(header, rows)


def verdicts(figures: dict[str, dict[str, Any]]) -> list[tuple[str, bool]]:
    """What our trainer must reach against the others, and whether it does."""
    checks: list[tuple[str, bool]] = []
    ours, bare, trl = (figures.get(system) for system in ("ours", "bare", "trl"))
    if ours and bare:
        speed = ours["tokens_per_second"] / bare["tokens_per_second"]
        memory = ours["peak_rss_mb"] / bare["peak_rss_mb"]
        gaps = [abs(a - b) / b for a, b in zip(ours["losses"], bare["losses"], strict=True)]
        checks += [
            (f"{speed:.2f} of the bare loop's speed (>= {MIN_OF_BARE})", speed >= MIN_OF_BARE),
            (f"{memory:.2f} of its peak memory (<= {MAX_MEMORY})", memory <= MAX_MEMORY),
            (f"losses equal to {max(gaps):.0e} in every step", max(gaps) <= MAX_LOSS_DIFFERENCE),
        ]
    if ours and trl:
        speed = ours["tokens_per_second"] / trl["tokens_per_second"]
        checks.append((f"{speed:.2f} times TRL's speed (>= {MIN_OF_TRL})", speed >= MIN_OF_TRL))
    return checks


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system")
    parser.add_argument("--steps", type=int, default=15, help="optimizer steps of a run")
    parser.add_argument("--skip", type=int, default=3, help="first steps that do not count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=DEFAULT_SYSTEMS)
    parser.add_argument("--json", type=Path, help="write every run's figures here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output_dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(options.child, Workload(options.root), options.output_dir, options.steps)
        return 0

    systems = [
        system
        for system in options.systems
        if not system.startswith("trl") or importlib.util.find_spec("trl")
    ]
    if len(systems) < len(options.systems):
        print("TRL is not installed (pip install trl datasets): left out", file=sys.stderr)
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    with tempfile.TemporaryDirectory(prefix="train_step_") as folder:
        root = Path(folder)

        def run(system: str, number: int) -> dict[str, Any]:
            output_dir = root / f"{system}-{number}"
            words = ["--child", system, "--root", str(root / "workload")]
            words += ["--output_dir", str(output_dir), "--steps", str(options.steps)]
            log = root / f"{system}-{number}.log"
            return run_child(Path(__file__), words, threads=options.threads, log_path=log)

        run("prepare", 0)
        for number in range(options.rounds):
            for system in systems:
                runs[system].append(run(system, number))
                speed = tokens_per_second(runs[system][-1], options.skip)
                print(f"round {number + 1}: {system} {speed:.0f} tokens/s", file=sys.stderr)
    figures = summarize(runs, options.skip)
    print(f"{machine()}, {options.threads} threads, fp32\n\n{show(figures)}\n")
    checks = verdicts(figures)
    for text, reached in checks:
        print(f"{'ok  ' if reached else 'MISS'} {text}")
    if options.json:
        options.json.write_text(json.dumps({"runs": runs}, indent=1), "utf-8")
    return 0 if all(reached for _, reached in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
