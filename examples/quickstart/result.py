"""``result.json``, and the table at the end of a run. Torch is not imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.quickstart.cards import CUSTOM
from examples.quickstart.intervals import Change, changes_by_dataset, in_points, points
from examples.quickstart.plan import RunFiles
from examples.quickstart.scoring import Reply, accuracy_by_dataset


def make_result(
    before: Sequence[Reply],
    after: Sequence[Reply],
    seconds: Mapping[str, float],
    *,
    budget: str,
    num_steps: int,
) -> dict[str, Any]:
    """What ``result.json`` holds.

    Args:
        before, after: replies to the same questions.
        seconds: duration of each phase.
        budget: its name.
        num_steps: optimizer steps.

    Returns:
        Shares (0-1) of right replies, and of their change the 95 % interval, by dataset; seconds.
    """
    changes = changes_by_dataset(before, after)
    return {
        "before": _rounded(accuracy_by_dataset(before)),
        "after": _rounded(accuracy_by_dataset(after)),
        "interval": {
            name: [round(one.low, 4), round(one.high, 4)] for name, one in changes.items()
        },
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "budget": budget,
        "optimizer_steps": num_steps,
    }


def _rounded(accuracy: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in accuracy.items()}


def _told_change(difference: float, interval: Sequence[float] | None) -> str:
    if interval is None:  # of a run that an earlier release made
        return points(difference)
    change = Change(difference=difference, low=interval[0], high=interval[1])
    return in_points(change) + (" no difference" if change.tone == "same" else "")


def show_result(console: Console, run: RunFiles, result: Mapping[str, Any]) -> None:
    """The table of the result and where to go on from it."""
    table = Table(title="Held-out accuracy, %", title_justify="left")
    table.add_column("dataset")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    table.add_column("points (95 % interval)")
    for name, before in result["before"].items():
        after = result["after"][name]
        told = _told_change(after - before, result.get("interval", {}).get(name))
        style = "bold green" if name == CUSTOM else None
        table.add_row(name, f"{100 * before:.1f}", f"{100 * after:.1f}", told, style=style)
    console.print(table)
    console.print(
        f"{result['seconds']['total'] / 60:.1f} minutes, {result['optimizer_steps']} steps, "
        f"budget {result['budget']}\n"
        f"report      {run.report}\nnumbers     {run.result}\nfine-tuned  {run.checkpoint}",
        soft_wrap=True,
    )
