"""Questions about scenes: colour, kind, count, position, size, existence, boxes, description."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

from examples.tiny_model.common import (
    COLOR_NAMES,
    SIDE,
    Box,
    Question,
    box_text,
    pick,
    with_article,
)
from examples.tiny_model.scene import KINDS, Scene, Shape

PLURALS = {"cross": "crosses"}
SIZE_MARGIN = 1.2
"""Ratio of radii from which one shape is called larger than another."""
SIDE_MARGIN = 6.0
"""Pixels between middles from which one shape is called left of (above) another."""


def plural(kind: str) -> str:
    """``star`` to ``stars``, ``cross`` to ``crosses``."""
    return PLURALS.get(kind, kind + "s")


def unique(shapes: Sequence[Shape], key: Callable[[Shape], str]) -> list[Shape]:
    """Shapes whose key no other shape of the scene shares."""
    counts = Counter(key(shape) for shape in shapes)
    return [shape for shape in shapes if counts[key(shape)] == 1]


def place_name(box: Box) -> str | None:
    """One of nine places (``top left`` ... ``bottom right``), None near a border between two."""
    names = []
    for low, high, words in ((box[1], box[3], ROWS), (box[0], box[2], COLUMNS)):
        middle = (low + high) / 2
        third, rest = divmod(middle, SIDE / 3)
        if min(rest, SIDE / 3 - rest) < 3.0 and 3.0 < middle < SIDE - 3.0:
            return None
        names.append(words[min(2, int(third))])
    return " ".join(name for name in names if name) or "middle"


ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")


def ask_color(rng: random.Random, scene: Scene) -> Question | None:
    """Colour of the only shape of its kind."""
    shapes = unique(scene.shapes, lambda s: s.kind)
    if not shapes:
        return None
    shape = rng.choice(shapes)
    text = pick(rng, "What color is the {}?", "What is the color of the {}?")
    return Question(
        text=text.format(shape.kind), answer=shape.color, skill="color", fact=shape.kind
    )


def ask_kind(rng: random.Random, scene: Scene) -> Question | None:
    """Kind of the only shape of its colour."""
    shapes = unique(scene.shapes, lambda s: s.color)
    if not shapes:
        return None
    shape = rng.choice(shapes)
    text = pick(rng, "What shape is {}?", "Which shape is the {} one?")
    return Question(
        text=text.format(shape.color), answer=shape.kind, skill="kind", fact=shape.color
    )


def ask_count(rng: random.Random, scene: Scene) -> Question:
    """How many, of all, of a kind, of a colour, or of both."""
    kinds = Counter(shape.kind for shape in scene.shapes)
    colors = Counter(shape.color for shape in scene.shapes)
    names = Counter((shape.color, shape.kind) for shape in scene.shapes)
    choices: list[tuple[str, int]] = [("shapes", len(scene.shapes))]
    choices += [(plural(kind), n) for kind, n in kinds.items()]
    choices += [(f"{color} shapes", n) for color, n in colors.items()]
    choices += [(f"{color} {plural(kind)}", n) for (color, kind), n in names.items()]
    absent = rng.choice([k for k in KINDS if k not in kinds] or [None])
    if absent:
        choices.append((plural(absent), 0))
    choices.append((f"{rng.choice([c for c in COLOR_NAMES if c not in colors])} shapes", 0))
    # Draw the number first: otherwise nearly every answer would be 1.
    numbers = sorted({n for _, n in choices} - {0})
    number = 0 if rng.random() < 0.12 else rng.choices(numbers, weights=[n + 1 for n in numbers])[0]
    what = rng.choice([name for name, n in choices if n == number])
    return Question(text=f"How many {what} are there?", answer=str(number), skill="count")


def ask_place(rng: random.Random, scene: Scene) -> Question | None:
    """Ninth of the image in which a shape stands."""
    shapes = [(s, place_name(s.box)) for s in unique(scene.shapes, lambda s: s.name)]
    placed = [(shape, place) for shape, place in shapes if place]
    if not placed:
        return None
    shape, place = rng.choice(placed)
    return Question(text=f"Where is the {shape.name}?", answer=place, skill="position")


def ask_relation(rng: random.Random, scene: Scene) -> Question | None:
    """Yes or no: is one shape left of, right of, above or below another?"""
    shapes = unique(scene.shapes, lambda s: s.name)
    if len(shapes) < 2:
        return None
    one, two = rng.sample(shapes, 2)
    relation = rng.choice(("left of", "right of", "above", "below"))
    offset = two.x - one.x if relation in ("left of", "right of") else two.y - one.y
    if abs(offset) < SIDE_MARGIN:
        return None
    answer = "yes" if (offset > 0) == (relation in ("left of", "above")) else "no"
    text = f"Is the {one.name} {relation} the {two.name}?"
    return Question(text=text, answer=answer, skill="relation")


def ask_larger(rng: random.Random, scene: Scene) -> Question | None:
    """Which of two shapes is larger (smaller)?"""
    shapes = unique(scene.shapes, lambda s: s.name)
    if len(shapes) < 2:
        return None
    one, two = rng.sample(shapes, 2)
    small, large = sorted((one, two), key=lambda s: s.radius)
    if large.radius < SIZE_MARGIN * small.radius:
        return None
    word, answer = rng.choice((("larger", large), ("smaller", small)))
    text = f"Which is {word}, the {one.name} or the {two.name}?"
    return Question(text=text, answer=answer.name, skill="size")


def ask_largest(rng: random.Random, scene: Scene) -> Question | None:
    """Largest or smallest shape of the scene, when there is no doubt."""
    if len(scene.shapes) < 2:
        return None
    ranked = sorted(scene.shapes, key=lambda s: s.radius)
    if rng.random() < 0.5:
        word, answer, rival = "largest", ranked[-1], ranked[-2]
    else:
        word, answer, rival = "smallest", ranked[0], ranked[1]
    ratio = answer.radius / rival.radius
    if max(ratio, 1 / ratio) < SIZE_MARGIN:
        return None
    return Question(text=f"Which shape is the {word}?", answer=answer.name, skill="size")


def ask_exists(rng: random.Random, scene: Scene) -> Question:
    """Yes or no: is there a shape of this colour and kind? Half of each."""
    names = {shape.name for shape in scene.shapes}
    if rng.random() < 0.5:
        name, answer = rng.choice(sorted(names)), "yes"
    else:
        # Colours and kinds of the scene in wrong pairs are the harder case: take them if any.
        own = [f"{a.color} {b.kind}" for a in scene.shapes for b in scene.shapes]
        wrong = sorted(set(own) - names)
        if not wrong or rng.random() < 0.3:
            wrong = sorted({f"{c} {k}" for c in COLOR_NAMES for k in KINDS} - names)
        name, answer = rng.choice(wrong), "no"
    return Question(text=f"Is there {with_article(name)}?", answer=answer, skill="exist")


def ask_box(rng: random.Random, scene: Scene) -> Question | None:
    """Box of a named shape."""
    shapes = unique(scene.shapes, lambda s: s.name)
    if not shapes:
        return None
    shape = rng.choice(shapes)
    text = pick(rng, "Give the box of <ref>{}</ref>.", "Locate <ref>{}</ref>.")
    answer = f"<ref>{shape.name}</ref>{box_text([shape.box])}"
    return Question(text=text.format(shape.name), answer=answer, skill="box", fact=shape.name)


def ask_region(rng: random.Random, scene: Scene) -> Question | None:
    """What stands in a box."""
    if not scene.shapes:
        return None
    shape = rng.choice(scene.shapes)
    text = f"What is in {box_text([shape.box])}?"
    return Question(text=text, answer=shape.name, skill="region", fact=shape.name)


def ask_list(rng: random.Random, scene: Scene) -> Question | None:
    """All shapes from left to right, when no two share a column."""
    shapes = sorted(scene.shapes, key=lambda s: s.x)
    if any(b.x - a.x < SIDE_MARGIN for a, b in itertools.pairwise(shapes)):
        return None
    answer = ", ".join(shape.name for shape in shapes)
    return Question(text="List the shapes from left to right.", answer=answer, skill="list")


ScenePrompt = Callable[[random.Random, Scene], Question | None]
SCENE_PROMPTS: tuple[ScenePrompt, ...] = (
    ask_list,
    ask_color,
    ask_color,
    ask_kind,
    ask_kind,
    ask_count,
    ask_count,
    ask_count,
    ask_place,
    ask_relation,
    ask_larger,
    ask_largest,
    ask_exists,
)
"""Prompts of the ``shapes`` family, the full list first; one that stands twice is asked more."""
BOX_PROMPTS: tuple[ScenePrompt, ...] = (ask_box, ask_box, ask_box, ask_region)
"""Prompts of the ``grounding`` family."""
