"""The page to look at after the quickstart: one HTML file that needs nothing else.

Pure but for :func:`image_data`, which reads the images that are shown.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from examples.quickstart.scoring import Reply, accuracy_by_dataset
from examples.quickstart.svg import (
    Series,
    before_after_bar,
    legend,
    line_chart,
    loss_series,
    smoothed,
)

CUSTOM = "digits"
"""The dataset that is new to the model; the others are general data."""
CUSTOM_CARDS, GENERAL_CARDS = 24, 6
_STYLE = Path(__file__).with_name("report.css")
_SPACE_BEFORE_STOP = re.compile(r" ([.,?!])")
_MARKS = re.compile(r"</?(?:ref|box)>")


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


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One question, answered before and after."""

    before: Reply
    after: Reply


def image_data(path: str) -> str:
    """The file as a ``data:`` address."""
    kind = {".png": "png"}.get(Path(path).suffix.lower(), "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


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
        _grid(choose(pairs), load),
        _how(given),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>internvl-chat quickstart</title>"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def pair_up(before: Sequence[Reply], after: Sequence[Reply]) -> list[Pair]:
    """Join the two by question.

    Raises:
        ValueError: a question is missing on one side, or stands twice.
    """
    by_id = {(reply.dataset, reply.identity): reply for reply in after}
    wanted = [(reply.dataset, reply.identity) for reply in before]
    if len(by_id) != len(after) or set(wanted) != set(by_id) or len(wanted) != len(by_id):
        raise ValueError(
            f"{len(before)} replies before and {len(after)} after are not about the same questions"
        )
    return [Pair(before=reply, after=by_id[key]) for reply, key in zip(before, wanted, strict=True)]


def choose(pairs: Iterable[Pair]) -> list[Pair]:
    """Some of each dataset, the custom one first; up to a third of them wrong ones if there are."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.after.dataset, []).append(pair)
    chosen: list[Pair] = []
    for name in sorted(groups, key=lambda name: name != CUSTOM):
        wanted = CUSTOM_CARDS if name == CUSTOM else GENERAL_CARDS
        wrong = [pair for pair in groups[name] if not pair.after.is_right]
        right = [pair for pair in groups[name] if pair.after.is_right]
        num_wrong = max(min(len(wrong), wanted // 3), wanted - len(right))
        chosen += right[: wanted - num_wrong] + wrong[:num_wrong]
    return chosen


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


def _grid(pairs: Sequence[Pair], load: Callable[[str], str]) -> str:
    cards = "".join(card(pair, load) for pair in pairs)
    choices = (("all", "all"), ("wrong", "wrong after"), ("changed", "right or wrong only since"))
    inputs = "".join(
        f'<input class="filter" type="radio" name="show" id="show-{key}"'
        f"{' checked' if key == 'all' else ''}>"
        for key, _ in choices
    )
    labels = "".join(f'<label for="show-{key}">{label}</label>' for key, label in choices)
    return (
        "<h2>Held-out images</h2>"
        '<p class="soft">Never trained on. Boxes: dashed is the truth, coloured is the answer '
        "after training, blue is part of the question. Mistakes are shown more often than they "
        "happen.</p>"
        f'{inputs}<div class="filters">{labels}</div><div class="cards">{cards}</div>'
    )


def card(pair: Pair, load: Callable[[str], str]) -> str:
    """One question with its images, both answers and the truth."""
    after, before = pair.after, pair.before
    shown = [after.question] if not after.images else []
    images = (
        "".join(
            f'<div class="image"><img src="{escape(load(path))}" alt="{escape(after.identity)}">'
            f"{_boxes(after) if len(after.images) == 1 else ''}</div>"
            for path in after.images
        )
        or f'<div class="words">{readable(shown[0])}</div>'
    )
    classes = ["card", "right" if after.is_right else "wrong"]
    classes.append("same" if after.is_right == before.is_right else "changed")
    question = f"<p>{readable(after.question)}</p>" if after.images else ""
    return (
        f'<article class="{" ".join(classes)}"><div class="images">{images}</div>'
        f'<div class="said"><small class="soft">{escape(after.dataset)}</small>{question}'
        f'<dl class="answer"><dt>after</dt><dd>{_verdict(after)}</dd>'
        f"<dt>before</dt><dd>{_verdict(before)}</dd>"
        f"<dt>truth</dt><dd>{readable(after.truth)}</dd></dl></div></article>"
    )


def _verdict(reply: Reply) -> str:
    tone, mark = ("yes", "✓") if reply.is_right else ("no", "✗")
    return f'<span class="{tone}">{mark}</span> {readable(reply.answer) or "(nothing)"}'


def readable(text: str) -> str:
    """Text for the page: no control marks, escaped, at most 120 characters.

    >>> readable("<ref>red star</ref><box>[[1, 2, 3, 4]]</box>")
    'red star [1, 2, 3, 4]'
    """
    plain = _MARKS.sub(" ", text).replace("[[", "[").replace("]]", "]")
    plain = _SPACE_BEFORE_STOP.sub(r"\1", " ".join(plain.split()))
    return escape(plain if len(plain) <= 120 else f"{plain[:119]}…")


def _boxes(reply: Reply) -> str:
    """Boxes over the image: of the question, of the truth (dashed) and of the answer."""
    from internvl_chat.evaluation.metrics.iou import parse_boxes  # imports torch

    tone = "hit" if reply.is_right else "miss"
    layers = [("asked", reply.question), (tone, reply.answer), ("truth", reply.truth)]
    drawn = "".join(_rect(kind, box) for kind, text in layers for box in parse_boxes(text))
    return f'<svg viewBox="0 0 1000 1000">{drawn}</svg>' if drawn else ""


def _rect(kind: str, box: Sequence[float]) -> str:
    x1, y1, x2, y2 = box
    place = f'x="{x1:g}" y="{y1:g}" width="{max(0, x2 - x1):g}" height="{max(0, y2 - y1):g}"'
    halo = f'<rect class="halo" {place}/>' if kind != "truth" else ""
    return f'{halo}<rect class="{kind}" {place}/>'


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
