"""Write down what the program does, or compare it with what was written down.

``python -m tests.pins.snapshot write|compare [--only SECTION,...] [--exact]``

Sections:
    help: the words of the command line; they may change on purpose (``write --only help``).
    options: its options with defaults and choices, and exit codes of wrong uses.
    dry_run: the command lines that the recipes build.
    batches: digests of collated batches, and the order of samples.
    losses: losses and gradient norms of three short trainings.
    figures: what these trainings report, and the files they leave.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.pins.batches import batches_section
from tests.pins.command_line import help_section, options_section
from tests.pins.differences import differences
from tests.pins.recipes import dry_run_section
from tests.pins.trainings import figures_section, losses_section

HERE = Path(__file__).resolve().parent
PINS = HERE / "pins.json"
TEXTS = HERE / "help"

SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "help": help_section,
    "options": options_section,
    "dry_run": dry_run_section,
    "batches": batches_section,
    "losses": losses_section,
    "figures": figures_section,
}
TOLERANCE = {"losses": 1e-5, "figures": 1e-5}
"""Relative: another machine rounds otherwise."""


def pinned(section: str) -> dict[str, Any]:
    """What was written down of a section; empty if nothing was."""
    values = json.loads(PINS.read_text("utf-8")).get(section, {}) if PINS.exists() else {}
    if section == "help":
        texts = {path.stem: path.read_text("utf-8") for path in sorted(TEXTS.glob("*.txt"))}
        values = {"texts": texts, **values}
    return values


def found(section: str) -> dict[str, Any]:
    """A section as the code is now, as JSON would give it back."""
    return json.loads(json.dumps(SECTIONS[section]()))


def compare(section: str, *, exact: bool = False) -> Iterator[str]:
    """A line for each difference between what was written down and what is now."""
    relative = 0.0 if exact else TOLERANCE.get(section, 0.0)
    return differences(pinned(section), found(section), where=section, relative=relative)


def write(sections: Sequence[str]) -> None:
    """Write sections down; the others stay as they are."""
    values = json.loads(PINS.read_text("utf-8")) if PINS.exists() else {}
    values |= {section: found(section) for section in sections}
    if "help" in sections:
        write_texts(values["help"].pop("texts"))
    ordered = {section: values[section] for section in SECTIONS if section in values}
    PINS.write_text(as_text(ordered) + "\n", encoding="utf-8")


def write_texts(texts: dict[str, str]) -> None:
    """One file a help; those of verbs that are gone go."""
    TEXTS.mkdir(exist_ok=True)
    for path in TEXTS.glob("*.txt"):
        if path.stem not in texts:
            path.unlink()
    for name, text in texts.items():
        (TEXTS / f"{name}.txt").write_text(text, encoding="utf-8")


def as_text(value: Any, indent: str = "") -> str:
    """JSON for reading and for ``git diff``: a line a value, but short and flat ones on one."""
    inner = indent + " "
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value:
        return flat
    parts = list(value.values()) if isinstance(value, dict) else value
    if len(flat) + len(indent) <= 100 and not any(isinstance(p, (dict, list)) for p in parts):
        return flat
    if isinstance(value, dict):
        items = (
            f"{json.dumps(k, ensure_ascii=False)}: {as_text(v, inner)}" for k, v in value.items()
        )
    else:
        items = (as_text(v, inner) for v in value)
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{end}"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if ``compare`` found differences."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pins.snapshot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--exact", action="store_true", help="numbers to the last bit")
    args = parser.parse_args(argv)
    sections = args.only.split(",")
    unknown = set(sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if args.what == "write":
        write(sections)
        return 0
    lines = [line for section in sections for line in compare(section, exact=args.exact)]
    print("\n".join(lines) if lines else f"as written down: {', '.join(sections)}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
