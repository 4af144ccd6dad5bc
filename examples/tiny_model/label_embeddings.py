"""What each image token shows: labels, and the embeddings of the labels.

A real chat model is stitched from a vision tower and a language model that have both seen much of
the world. The tiny one's parts come from two short trainings beside each other (``vision_stage.py``
and ``language_stage.py``), and label embeddings are what they have in common: the vision tower and
its projector are trained to give the sum of the embeddings of the labels that a token shows, the
language model to answer questions about such sums. The embeddings are orthogonal, so that neither
has to undo what the other mixes up.

``K`` image tokens of an image, ``G`` groups of labels, ``D`` width of the language model.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.tiny_model.charts import MAX_BARS, MAX_VALUE, Chart
from examples.tiny_model.common import BOX_GRID, COLOR_NAMES, SIDE, unit_box
from examples.tiny_model.records import ImageSpec
from examples.tiny_model.scene import CELLS, FEW, KINDS, RADII, SIZES, Scene
from examples.tiny_model.words import DIGITS, KINDS_OF_LINE, LETTERS, MAX_LENGTH, Sign

NUM_TOKENS = CELLS * CELLS
CELL_SIDE = SIDE / CELLS


def _numbers(last: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, last + 1))


EDGES = ("left", "top", "right", "bottom")
EDGE_DIGITS = ("tens", "units")
"""Of the hundredths of a side in which boxes are given: 990 on the scale of 1000 is 9 and 9."""
GROUPS: dict[str, tuple[str, ...]] = {
    "color": COLOR_NAMES,
    "kind": (*KINDS, "bar"),
    "size": SIZES,
    "total": _numbers(len(FEW)),
    "value": _numbers(MAX_VALUE),
    "order": _numbers(MAX_BARS),
    "glyph": tuple(LETTERS + DIGITS),
    "line": KINDS_OF_LINE,
    "place": _numbers(MAX_LENGTH),
    "length": _numbers(MAX_LENGTH),
    "row": _numbers(CELLS),
    "column": _numbers(CELLS),
    **{f"{edge}_{digit}": tuple(DIGITS) for edge in EDGES for digit in EDGE_DIGITS},
}
"""Labels that exclude each other: an image token shows at most one of each group."""
GROUP_NAMES = tuple(GROUPS)
NOTHING, UNKNOWN = -1, -2
"""Of a group: the token shows none of it; it is not said what the token shows."""
PERIODS = (2.0, 1.0, 0.5)
"""Of the waves that tell a box's edges roughly, in sides of the image."""
NUM_WAVES = 4 * 2 * len(PERIODS)


@dataclass(frozen=True)
class TokenLabels:
    """What the image tokens of one image show, in the model's order."""

    classes: NDArray[np.int64] = field(
        default_factory=lambda: np.full((NUM_TOKENS, len(GROUPS)), NOTHING)
    )
    """(K, G) index within the group, NOTHING or UNKNOWN."""
    edges: NDArray[np.float32] = field(
        default_factory=lambda: np.full((NUM_TOKENS, 4), np.nan, np.float32)
    )
    """(K, 4) box of the shape, in sides of the image; NaN where there is none."""

    def mark(self, token: int, **labels: int | str) -> None:
        """Say what a token shows: the label, or a number counted from 1."""
        for group, label in labels.items():
            index = GROUPS[group].index(label) if isinstance(label, str) else label - 1
            self.classes[token, GROUP_NAMES.index(group)] = index

    def leave_open(self, *groups: str) -> None:
        """Say nothing of these groups, for any token."""
        for group in groups:
            self.classes[:, GROUP_NAMES.index(group)] = UNKNOWN


def token_at(x: float, y: float) -> int:
    """Which image token covers a pixel. Pixel shuffle v1 orders them column by column."""
    column, row = (min(CELLS - 1, int(v // CELL_SIDE)) for v in (x, y))
    return column * CELLS + row


def label_image(spec: ImageSpec) -> TokenLabels:
    """Labels of an image of any kind."""
    labels = TokenLabels()
    for token in range(NUM_TOKENS):
        labels.mark(token, row=token % CELLS + 1, column=token // CELLS + 1)
    match spec:
        case Scene():
            _label_scene(labels, spec)
        case Chart():
            _label_chart(labels, spec)
        case Sign():
            _label_sign(labels, spec)
    return labels


def _label_scene(labels: TokenLabels, scene: Scene) -> None:
    for shape in scene.shapes:
        token = token_at(shape.x, shape.y)
        size = SIZES[RADII.index(shape.radius)]
        labels.mark(token, color=shape.color, kind=shape.kind, size=size)
        labels.edges[token] = [edge / SIDE for edge in shape.box]
        hundredths = [min(99, v // BOX_GRID) for v in unit_box(shape.box)]
        for edge, number in zip(EDGES, hundredths, strict=True):
            digits = zip(EDGE_DIGITS, f"{number:02d}", strict=True)
            labels.mark(token, **{f"{edge}_{name}": digit for name, digit in digits})
    if len(scene.shapes) <= len(FEW):
        for token in range(NUM_TOKENS):
            labels.mark(token, total=len(scene.shapes))
    else:
        labels.leave_open("total")


def _label_chart(labels: TokenLabels, chart: Chart) -> None:
    """A bar is told by every token of its column."""
    for order, bar in enumerate(chart.bars, start=1):
        for row in range(CELLS):
            token = token_at((bar.box[0] + bar.box[2]) / 2, (row + 0.5) * CELL_SIDE)
            labels.mark(token, color=bar.color, kind="bar", value=bar.value, order=order)
    for token in range(NUM_TOKENS):
        labels.mark(token, total=len(chart.bars))


def _label_sign(labels: TokenLabels, sign: Sign) -> None:
    for line in sign.lines:
        for place, (glyph, box) in enumerate(zip(line.text, line.glyph_boxes, strict=True)):
            token = token_at((box[0] + box[2]) / 2, line.y)
            labels.mark(token, glyph=glyph, color=line.color)
            numbers = {"place": place + 1, "length": len(line.text)}
            labels.mark(token, line=line.kind, **numbers)
    if len(sign.lines) > 2:  # a sheet of glyphs has no words
        labels.leave_open("line", "place", "length")


def waves(edges: Tensor) -> Tensor:
    """(..., 4) edges to (..., NUM_WAVES) sines and cosines; zeros where there is no box."""
    turns = edges.unsqueeze(-1) * torch.tensor([2 * math.pi / period for period in PERIODS])
    return torch.cat([turns.sin(), turns.cos()], dim=-1).flatten(-2).nan_to_num(0.0)


class LabelEmbeddings:
    """An orthogonal direction for every label and every wave.

    Args:
        width: D, at least the number of directions.
        seed: of the directions; both stages must use the same.

    Raises:
        ValueError: the width is too small.
    """

    LABEL_SIZE, WAVE_SIZE = 2.0, 0.8
    """Length of a label's vector, and of a wave's at its peak; a token embedding has about 5."""

    def __init__(self, width: int, seed: int = 0) -> None:
        num_labels = sum(len(labels) for labels in GROUPS.values())
        if width < num_labels + NUM_WAVES:
            raise ValueError(f"width {width} < {num_labels} labels + {NUM_WAVES} waves")
        generator = torch.Generator().manual_seed(seed)
        square = torch.randn(width, width, generator=generator, dtype=torch.float64)
        directions = torch.linalg.qr(square)[0].float()
        self.labels = self.LABEL_SIZE * directions[:num_labels]
        """(sum of the groups' sizes, D)."""
        self.waves = self.WAVE_SIZE * directions[num_labels : num_labels + NUM_WAVES]
        """(NUM_WAVES, D)."""
        self.rest = directions[num_labels + NUM_WAVES :]
        """Unit directions that mean no label."""
        sizes = [len(labels) for labels in GROUPS.values()]
        self._first = torch.tensor([0, *sizes[:-1]]).cumsum(0)

    def vector(self, group: str, label: str) -> Tensor:
        """(D,) embedding of a label."""
        first = int(self._first[GROUP_NAMES.index(group)])
        return self.labels[first + GROUPS[group].index(label)]

    def encode(self, classes: Tensor, edges: Tensor) -> Tensor:
        """Embeddings of image tokens.

        Args:
            classes: (..., K, G); what is UNKNOWN is left out like NOTHING.
            edges: (..., K, 4).

        Returns:
            (..., K, D), the sum of the embeddings of all that a token shows.
        """
        shown = classes >= 0
        vectors = self.labels[(classes + self._first).clamp(min=0)] * shown.unsqueeze(-1)
        return vectors.sum(-2) + waves(edges) @ self.waves

    def decode(self, embeds: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """The inverse of :meth:`encode`.

        Args:
            embeds: (..., D).

        Returns:
            Strength of each label by group (..., size of the group), 1 where it is shown and 0
            where not; waves (..., NUM_WAVES); what means no label (..., D - directions).
        """
        strengths = embeds @ (self.labels / self.LABEL_SIZE**2).t()
        groups = strengths.split([len(labels) for labels in GROUPS.values()], dim=-1)
        return groups, embeds @ (self.waves / self.WAVE_SIZE**2).t(), embeds @ self.rest.t()
