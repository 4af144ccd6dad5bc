"""The page to look at after the quickstart: one HTML file that needs nothing else.

Pure but for the images that are shown, which are read.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from examples.quickstart.cards import CUSTOM, choose, grid, image_data, pair_up
from examples.quickstart.commands import Command
from examples.quickstart.intervals import LEVEL, Change, changes_by_dataset, in_points, mean_change
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
_SCRIPT = Path(__file__).with_name("report.js")
PARTS = {
    "accuracy": "Accuracy",
    "loss": "Training loss",
    "images": "Images",
    "commands": "Commands",
    "made": "How it was made",
}
"""Anchors of the headings, and what their links say."""
_VERDICTS = {"gain": "better", "loss": "worse", "same": "no difference"}


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
    made: Sequence[str]
    """When, from which commit and on what: the line below the title."""
    facts: Mapping[str, str]
    """Name and value of what else there is to say (model, steps, budget, versions, ...)."""
    commands: Sequence[Command]
    """What to do next, and the training command."""


def render_report(given: ReportInput, load: Callable[[str], str] = image_data) -> str:
    """The page's HTML.

    Nothing of it is loaded from anywhere, and its Content-Security-Policy lets nothing be: style
    and script are admitted by their digests.

    Args:
        given: what to show.
        load: from an image's path to an address that the page can hold.

    Raises:
        ValueError: ``before`` and ``after`` are not about the same questions.
    """
    pairs = pair_up(given.before, given.after)
    style, script = (file.read_text(encoding="utf-8") for file in (_STYLE, _SCRIPT))
    sections = (
        _head(given),
        _table(given),
        _curves(given.log),
        grid(choose(pairs), load),
        _commands(given.commands),
        _facts(given),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<title>internvl-chat quickstart</title><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>\n<body><main>"
        f"{''.join(sections)}</main><script>{script}</script></body></html>\n"
    )


def _policy(style: str, script: str) -> str:
    # style-src-attr: colours of the charts' lines stand on the lines themselves.
    return (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"style-src-attr 'unsafe-inline'; script-src {_digest(script)}"
    )


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


# --- sections


def _head(given: ReportInput) -> str:
    before, after = accuracy_by_dataset(given.before), accuracy_by_dataset(given.after)
    changes = changes_by_dataset(given.before, given.after)
    general = [name for name in before if name != CUSTOM]
    tiles = []
    if CUSTOM in before:
        label = "Handwritten digits read, held out"
        tiles.append(_scores(label, before[CUSTOM], after[CUSTOM], changes[CUSTOM]))
    if general:
        was, now = (sum(x[name] for name in general) / len(general) for x in (before, after))
        label = f"General skills, mean of {len(general)} datasets"
        tiles.append(_scores(label, was, now, mean_change([changes[name] for name in general])))
    whole = f"of {_duration(sum(given.seconds.values()))} for all phases"
    tiles.append(_tile("Training", _duration(given.seconds.get("train", 0)), whole))
    made = "".join(f"<span>{escape(part)}</span> " for part in given.made)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in PARTS.items())
    return (
        "<header><h1>A tiny InternVL\N{NON-BREAKING HYPHEN}Chat learns to read handwriting</h1>"
        '<p class="soft">The shipped tiny model was fine-tuned on a custom dataset mixed with '
        "general data, and asked the same held-out questions before and after.</p>"
        f'<p class="made">{made.rstrip()}</p>'
        f'<nav aria-label="Parts of the page">{links}</nav></header>'
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _scores(label: str, before: float, after: float, change: Change) -> str:
    value = f"<small>{_percent(before)} →</small> {_percent(after)}"
    return _tile(label, value, f"{_verdict(change)} {in_points(change)} points")


def _tile(label: str, value: str, below: str) -> str:
    return (
        f'<section class="tile"><h2>{escape(label)}</h2><p class="value">{value}</p>'
        f'<p class="below">{below}</p></section>'
    )


def _verdict(change: Change) -> str:
    return f'<span class="verdict {change.tone}">{_VERDICTS[change.tone]}</span>'


def _table(given: ReportInput) -> str:
    before, after = accuracy_by_dataset(given.before), accuracy_by_dataset(given.after)
    changes = changes_by_dataset(given.before, given.after)
    counts: dict[str, int] = {}
    for reply in given.after:
        counts[reply.dataset] = counts.get(reply.dataset, 0) + 1
    rows = "".join(
        _row(name, counts[name], before[name], after[name], changes[name])
        for name in sorted(before, key=lambda name: name != CUSTOM)
    )
    by_chance = 100 * (1 - LEVEL ** len(before))
    heads = "".join(f'<th scope="col" role="columnheader">{head}</th>' for head in _COLUMNS)
    # The roles say again what the tags say: with display: grid (phones) browsers forget it.
    return (
        '<h2 id="accuracy">Accuracy on held-out questions</h2>'
        '<div class="panel rows"><table role="table" aria-labelledby="accuracy" '
        'aria-describedby="interval"><thead role="rowgroup">'
        f'<tr role="row">{heads}</tr></thead><tbody role="rowgroup">{rows}</tbody></table></div>'
        '<p class="note" id="interval">In brackets the 95 % interval of the change, for the same '
        "questions asked twice (Newcombe 1998, method 10). Where it holds 0, chance alone can make "
        "the change: <b>no difference</b>. Even if nothing changed, at least one of "
        f"{len(before)} datasets would look changed in {by_chance:.0f} % of runs.</p>"
    )


_COLUMNS = (
    *("dataset", "questions", "before", "after", "change in points (95 % interval)", "outcome"),
    "0 to 100 %, hollow before, full after",
)


def _row(name: str, num: int, before: float, after: float, change: Change) -> str:
    kind = ' class="custom"' if name == CUSTOM else ""
    difference, interval = in_points(change).split(" ", 1)
    return (
        f'<tr role="row"{kind}><th scope="row" role="rowheader">{escape(name)}</th>'
        f'<td role="cell" data-label="questions">{num}</td>'
        f'<td role="cell" data-label="before">{_percent(before)}</td>'
        f'<td role="cell" data-label="after">{_percent(after)}</td>'
        f'<td role="cell" class="change" data-label="change in points, 95 % interval">'
        f"{difference} <small>{interval}</small></td>"
        f'<td role="cell" class="outcome">{_verdict(change)}</td>'
        f'<td role="cell" class="bar">{before_after_bar(before, after, change.tone)}</td></tr>'
    )


def _curves(log: Sequence[Mapping[str, float]]) -> str:
    total = loss_series(log, "loss", name="each step", color="var(--c0)")
    half_width = max(1, len(total.points) // 40)
    raw = Series(name=total.name, points=total.points, color=total.color, width=1, opacity=0.4)
    smooth = Series(
        name="smoothed", points=smoothed(total.points, half_width), color="var(--c0)", width=2.5
    )
    return (
        '<h2 id="loss">Training loss</h2><div class="two">'
        f"{_chart('All datasets', [raw, smooth])}{_chart('By dataset', dataset_series(log))}</div>"
    )


def _chart(title: str, series: Sequence[Series]) -> str:
    """Drawn twice, for wide screens and for phones: letters keep their size."""
    drawings = "".join(
        line_chart(
            series,
            title=f"Training loss: {title.lower()}",
            x_label="optimizer step",
            y_label="loss (nats per answer token)",
            on_phone=on_phone,
        )
        for on_phone in (False, True)
    )
    return f'<div class="panel"><h3>{title}</h3>{drawings}{legend(series)}</div>'


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


def _commands(commands: Sequence[Command]) -> str:
    blocks = "".join(
        f'<section class="command panel"><header><h3>{escape(one.title)}</h3></header>'
        f"<pre><code>{escape(one.text)}</code></pre></section>"
        for one in commands
    )
    return (
        '<h2 id="commands">Go on from here</h2><p class="soft">In the repository\'s folder:</p>'
        f'<div class="commands">{blocks}</div>'
    )


def _facts(given: ReportInput) -> str:
    phases = ", ".join(f"{name} {_plain(seconds)}" for name, seconds in given.seconds.items())
    facts = {**given.facts, "phases": phases}
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()
    )
    return f'<h2 id="made">How it was made</h2><dl class="panel facts">{rows}</dl>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def _plain(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}\N{NARROW NO-BREAK SPACE}min" if minutes else f"{rest} s"


def _duration(seconds: float) -> str:
    value, unit = re.split(r"\s", _plain(seconds))
    return f"{value}\N{NARROW NO-BREAK SPACE}<small>{unit}</small>"
