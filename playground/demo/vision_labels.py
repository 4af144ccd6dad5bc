"""Dense labels of a picture for the vision tower's own pre-training: what each patch shows.

The chat recipe starts from a *pretrained* InternViT; this is how the tiny one comes by its sight.
"""

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from playground.demo.charts import MAX_BARS, Chart, draw_chart, sample_chart
from playground.demo.common import COLOR_NAMES, SIDE, Box
from playground.demo.scene import KINDS, MANY, Scene, draw_scene, sample_scene
from playground.demo.words import DIGITS, LETTERS, MAX_LENGTH, Sign, draw_sign, sample_sign

PATCH = 14
GRID = SIDE // PATCH
NUM_PATCHES = GRID * GRID
UNKNOWN = -100
"""Not asked of this picture or patch; cross entropy ignores it."""

GLYPHS = LETTERS + DIGITS
KIND_CLASSES = (*KINDS, "bar")
_MIN_OVERLAP = 20.0  # square pixels of a patch that a thing must cover to be its content

# Whole-picture labels: name -> number of classes. 0 is "none" throughout.
GLOBAL_CLASSES: dict[str, int] = {
    "num_shapes": 7,
    **{f"num_{name}": 7 for name in (*COLOR_NAMES, *KINDS)},
    "num_bars": MAX_BARS + 1,
    **{f"value_{name}": 11 for name in COLOR_NAMES},
    **{f"bar_color_{i}": len(COLOR_NAMES) + 1 for i in range(MAX_BARS)},
    **{f"glyph_{i}": len(GLYPHS) + 1 for i in range(2 * MAX_LENGTH)},
}
# Labels of a patch: name -> number of classes.
PATCH_CLASSES: dict[str, int] = {
    "color": len(COLOR_NAMES) + 1,
    "kind": len(KIND_CLASSES) + 1,
    "middle": 2,
    "same_color": 7,
    "same_kind": 7,
    "value": 11,
    "order": MAX_BARS + 1,
    "glyph_a": len(GLYPHS) + 1,
    "glyph_b": len(GLYPHS) + 1,
    "glyph_index": 2 * MAX_LENGTH + 1,
}


@dataclass(frozen=True)
class PatchLabels:
    """Labels of one picture; every array starts as "unknown"."""

    patches: NDArray[np.int64] = field(
        default_factory=lambda: np.full((len(PATCH_CLASSES), NUM_PATCHES), UNKNOWN, np.int64)
    )
    whole: NDArray[np.int64] = field(
        default_factory=lambda: np.full(len(GLOBAL_CLASSES), UNKNOWN, np.int64)
    )
    boxes: NDArray[np.float32] = field(
        default_factory=lambda: np.full((NUM_PATCHES, 4), np.nan, np.float32)
    )
    """Offsets of the box's edges from the patch's middle, in patches; NaN where there is none."""


_PATCH_ROW = {name: i for i, name in enumerate(PATCH_CLASSES)}
_GLOBAL_ROW = {name: i for i, name in enumerate(GLOBAL_CLASSES)}


def _coverage(box: Box) -> NDArray[np.float64]:
    """(NUM_PATCHES,) square pixels of each patch that the box covers, patches row by row."""
    starts = np.arange(GRID) * PATCH
    across = np.clip(np.minimum(box[2], starts + PATCH) - np.maximum(box[0], starts), 0, None)
    down = np.clip(np.minimum(box[3], starts + PATCH) - np.maximum(box[1], starts), 0, None)
    return np.outer(down, across).ravel()


def _patch_of(x: float, y: float) -> int:
    column, row = (min(GRID - 1, max(0, int(v // PATCH))) for v in (x, y))
    return row * GRID + column


def _middles() -> NDArray[np.float64]:
    middle = (np.arange(GRID) + 0.5) * PATCH
    y, x = np.meshgrid(middle, middle, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), x.ravel(), y.ravel()], axis=1)


_MIDDLES = _middles()


def _mark(labels: PatchLabels, box: Box, values: dict[str, int]) -> None:
    """Write a thing's labels into the patches that it covers."""
    covered = _coverage(box) >= _MIN_OVERLAP
    covered[_patch_of((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)] = True
    for name, value in values.items():
        labels.patches[_PATCH_ROW[name], covered] = value
    labels.boxes[covered] = (np.asarray(box) - _MIDDLES[covered]) / PATCH


def label_scene(scene: Scene) -> PatchLabels:
    """Labels of a scene of shapes."""
    labels = PatchLabels()
    for name in ("color", "kind", "middle"):
        labels.patches[_PATCH_ROW[name]] = 0
    colors = [shape.color for shape in scene.shapes]
    kinds = [shape.kind for shape in scene.shapes]
    for shape in scene.shapes:
        values = {
            "color": COLOR_NAMES.index(shape.color) + 1,
            "kind": KIND_CLASSES.index(shape.kind) + 1,
            "same_color": colors.count(shape.color),
            "same_kind": kinds.count(shape.kind),
        }
        _mark(labels, shape.box, values)
    for shape in scene.shapes:
        labels.patches[_PATCH_ROW["middle"], _patch_of(shape.x, shape.y)] = 1
    labels.whole[_GLOBAL_ROW["num_shapes"]] = len(scene.shapes)
    for name in (*COLOR_NAMES, *KINDS):
        labels.whole[_GLOBAL_ROW[f"num_{name}"]] = colors.count(name) + kinds.count(name)
    return labels


def label_chart(chart: Chart) -> PatchLabels:
    """Labels of a bar chart."""
    labels = PatchLabels()
    for name in ("color", "kind"):
        labels.patches[_PATCH_ROW[name]] = 0
    for i, bar in enumerate(chart.bars):
        color = COLOR_NAMES.index(bar.color) + 1
        bar_kind = KIND_CLASSES.index("bar") + 1
        values = {"color": color, "kind": bar_kind, "value": bar.value, "order": i + 1}
        _mark(labels, bar.box, values)
    labels.whole[_GLOBAL_ROW["num_bars"]] = len(chart.bars)
    for name in COLOR_NAMES:
        labels.whole[_GLOBAL_ROW[f"value_{name}"]] = 0
    for bar in chart.bars:
        labels.whole[_GLOBAL_ROW[f"value_{bar.color}"]] = bar.value
    for i in range(MAX_BARS):
        color = COLOR_NAMES.index(chart.bars[i].color) + 1 if i < len(chart.bars) else 0
        labels.whole[_GLOBAL_ROW[f"bar_color_{i}"]] = color
    return labels


def label_sign(sign: Sign) -> PatchLabels:
    """Labels of a sign: two glyphs a patch; places 0-5 in the first line, 6-11 in the second."""
    labels = PatchLabels()
    for name in ("glyph_a", "glyph_b"):
        labels.patches[_PATCH_ROW[name]] = 0
    for place in range(2 * MAX_LENGTH):
        labels.whole[_GLOBAL_ROW[f"glyph_{place}"]] = 0
    for row, line in enumerate(sign.lines):
        color = COLOR_NAMES.index(line.color) + 1
        for i, (glyph, box) in enumerate(zip(line.text, line.glyph_boxes, strict=True)):
            value = GLYPHS.index(glyph) + 1
            place = row * MAX_LENGTH + i
            labels.whole[_GLOBAL_ROW[f"glyph_{place}"]] = value
            patch = _patch_of((box[0] + box[2]) / 2, line.y)
            first = labels.patches[_PATCH_ROW["glyph_a"], patch] == 0
            labels.patches[_PATCH_ROW["glyph_a" if first else "glyph_b"], patch] = value
            if first:
                labels.patches[_PATCH_ROW["glyph_index"], patch] = place + 1
            labels.patches[_PATCH_ROW["color"], patch] = color
    return labels


def labelled_picture(rng: random.Random) -> tuple[Image.Image, PatchLabels]:
    """A picture of the demo's kinds and its labels."""
    family = rng.random()
    if family < 0.38:
        scene = sample_scene(rng, counts=MANY)
        return draw_scene(scene), label_scene(scene)
    if family < 0.56:
        chart = sample_chart(rng)
        return draw_chart(chart), label_chart(chart)
    sign = sample_sign(rng)
    return draw_sign(sign), label_sign(sign)
