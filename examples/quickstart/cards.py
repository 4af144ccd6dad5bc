"""Held-out questions on the page: which are shown, and each with its images, answers and boxes.

Pure but for :func:`image_data`, which reads the images that are shown.
"""

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from examples.quickstart.scoring import Reply

CUSTOM = "digits"
"""The dataset that is new to the model; the others are general data."""
CUSTOM_CARDS, GENERAL_CARDS = 24, 6
_SPACE_BEFORE_STOP = re.compile(r" ([.,?!])")
_MARKS = re.compile(r"</?(?:ref|box)>")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One question, answered before and after."""

    before: Reply
    after: Reply


def image_data(path: str) -> str:
    """The file as a ``data:`` address."""
    kind = {".png": "png"}.get(Path(path).suffix.lower(), "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


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


def grid(pairs: Sequence[Pair], load: Callable[[str], str]) -> str:
    cards = "".join(card(pair, load) for pair in pairs)
    choices = (("all", "all"), ("wrong", "wrong after"), ("changed", "right or wrong only since"))
    inputs = "".join(
        f'<input class="filter" type="radio" name="show" id="show-{key}"'
        f"{' checked' if key == 'all' else ''}>"
        for key, _ in choices
    )
    labels = "".join(f'<label for="show-{key}">{label}</label>' for key, label in choices)
    return (
        '<h2 id="images">Held-out images</h2>'
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
