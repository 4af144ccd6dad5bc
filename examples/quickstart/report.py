"""The page to look at after the quickstart: one HTML file that needs nothing else.

Pure but for the images that are shown, which are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from examples.quickstart.cards import CUSTOM, choose, grid, image_data, pair_up
from examples.quickstart.scoring import Reply, accuracy_by_dataset
from examples.quickstart.svg import (
    Series,
    before_after_bar,
    legend,
    line_chart,
    loss_series,
    smoothed,
)

_STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """What the page is made of."""

    before: Sequence[Reply]
    after: Sequence[Reply]
    """The same questions in the same order as ``before``."""
    log: Sequence[Mapping[str, float]]
    """``log_history`` of the trainer."""
    seconds: Mapping[str, float]
    """Duration of each phase."""
    facts: Mapping[str, str]
    """Name and value of what else there is to say (model, steps, budget, ...)."""
    command: str
    """The training command, to run it again."""


def render_report(given: ReportInput, load: Callable[[str], str] = image_data) -> str:
    """The page's HTML.

    Args:
        given: what to show.
        load: from an image's path to an address that the page can hold.

    Raises:
        ValueError: ``before`` and ``after`` are not about the same questions.
    """
    pairs = pair_up(given.before, given.after)
    sections = (
        _head(given),
        _table(given),
        _curves(given.log),
        grid(choose(pairs), load),
        _how(given),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>internvl-chat quickstart</title>"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>"
        f"{''.join(sections)}</main></body></html>\n"
    )


# --- sections


def _head(given: ReportInput) -> str:
    before, after = accuracy_by_dataset(given.before), accuracy_by_dataset(given.after)
    general = [name for name in before if name != CUSTOM]
    tiles = [
        _tile(
            "handwritten digits read, held out",
            f"<small>{_percent(before.get(CUSTOM, 0))} →</small> {_percent(after.get(CUSTOM, 0))}",
        )
    ]
    if general:
        was, now = (sum(x[name] for name in general) / len(general) for x in (before, after))
        tiles.append(
            _tile(
                "general skills, mean of datasets",
                f"<small>{_percent(was)} →</small> {_percent(now)}",
            )
        )
    tiles += [
        _tile("training", _duration(given.seconds.get("train", 0))),
        _tile("all phases", _duration(sum(given.seconds.values()))),
    ]
    return (
        "<h1>A tiny InternVL-Chat learns to read handwriting</h1>"
        '<p class="soft">The shipped tiny model was fine-tuned on a custom dataset mixed with '
        "general data, and asked the same held-out questions before and after.</p>"
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _tile(label: str, value: str) -> str:
    return f'<div class="tile"><b>{value}</b><span class="soft">{escape(label)}</span></div>'


def _table(given: ReportInput) -> str:
    before, after = accuracy_by_dataset(given.before), accuracy_by_dataset(given.after)
    counts: dict[str, int] = {}
    for reply in given.after:
        counts[reply.dataset] = counts.get(reply.dataset, 0) + 1
    rows = []
    for name in sorted(before, key=lambda name: name != CUSTOM):
        points = 100 * (after[name] - before[name])
        tone = "gain" if points > 0 else "loss" if points < 0 else ""
        kind = ' class="custom"' if name == CUSTOM else ""
        rows.append(
            f"<tr{kind}><td>{escape(name)}</td><td>{counts[name]}</td>"
            f"<td>{_percent(before[name])}</td><td>{_percent(after[name])}</td>"
            f'<td class="{tone}">{points:+.1f}</td>'
            f"<td>{before_after_bar(before[name], after[name])}</td></tr>"
        )
    return (
        "<h2>Accuracy on held-out questions</h2>"
        '<div class="panel"><table><thead><tr><th>dataset</th><th>questions</th><th>before</th>'
        "<th>after</th><th>points</th><th>0 to 100 %, hollow before, full after</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _curves(log: Sequence[Mapping[str, float]]) -> str:
    total = loss_series(log, "loss", name="each step", color="var(--c0)")
    half_width = max(1, len(total.points) // 40)
    raw = Series(name=total.name, points=total.points, color=total.color, width=1, opacity=0.4)
    smooth = Series(
        name="smoothed", points=smoothed(total.points, half_width), color="var(--c0)", width=2.5
    )
    by_dataset = dataset_series(log)
    chart = {"x_label": "optimizer step", "y_label": "loss (nats per answer token)"}
    return (
        '<h2>Training loss</h2><div class="two">'
        f'<div class="panel"><h3>All datasets</h3>'
        f"{line_chart([raw, smooth], title='Training loss', **chart)}"
        f"{legend([raw, smooth])}</div>"
        f'<div class="panel"><h3>By dataset</h3>'
        f"{line_chart(by_dataset, title='Training loss by dataset', **chart)}"
        f"{legend(by_dataset)}</div></div>"
    )


def dataset_series(log: Sequence[Mapping[str, float]]) -> list[Series]:
    """Lines of the entries ``loss/DATASET``, the custom dataset first and in the first colour."""
    names = sorted(
        {key.removeprefix("loss/") for entry in log for key in entry if key.startswith("loss/")},
        key=lambda name: (name != CUSTOM, name),
    )
    return [
        loss_series(log, f"loss/{name}", name=name, color=f"var(--c{i % 7})")
        for i, name in enumerate(names)
    ]


def _how(given: ReportInput) -> str:
    rows = [(name, escape(value)) for name, value in given.facts.items()]
    rows += [(f"seconds: {name}", f"{value:.0f}") for name, value in given.seconds.items()]
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{value}</td></tr>" for name, value in rows)
    return (
        "<h2>How it was made</h2>"
        f"<pre><code>{escape(given.command)}</code></pre>"
        f'<div class="panel"><table><tbody>{cells}</tbody></table></div>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}\N{NARROW NO-BREAK SPACE}<small>min</small>"
