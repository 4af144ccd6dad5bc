"""Wall time of ``internvl-chat --help`` against a Python that does nothing.

The two take turns, each in a process of its own; ``--verb`` adds a verb's help, which loads its
module. Example::

    python benchmarks/command_start.py --rounds 9 --verb chat
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from benchmarks.common import ROOT, table

PASS = "python -c pass"


def seconds(arguments: Sequence[str]) -> float:
    """Wall time of ``python ARGUMENTS``.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - begin


def main() -> int:
    """Measure, print a table with medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--verb", action="append", default=[], help="may be repeated")
    options = parser.parse_args()
    command = ["-m", "internvl_chat"]
    systems = {PASS: ["-c", "pass"], "internvl-chat --help": [*command, "--help"]}
    for verb in options.verb:
        systems[f"internvl-chat {verb} --help"] = [*command, verb, "--help"]
    seen: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(options.rounds):
        for name, arguments in systems.items():
            seen[name].append(seconds(arguments))
    base = statistics.median(seen[PASS])
    rows = [
        (
            name,
            f"{statistics.median(runs):.3f}",
            f"{min(runs):.3f}-{max(runs):.3f}",
            f"{statistics.median(runs) / base:.1f}",
        )
        for name, runs in seen.items()
    ]
    print(table(("command", "seconds, median", "range", f"times {PASS}"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
