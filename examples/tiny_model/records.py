"""Families of records: from (seed, family, split, index) to images and a LLaVA-style record."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from PIL import Image

from examples.annotations import Record, image_record
from examples.tiny_model.charts import Chart, draw_chart, sample_chart
from examples.tiny_model.common import SIDE, Question, stream
from examples.tiny_model.other_questions import (
    CHART_PROMPTS,
    TEXT_PROMPTS,
    pair_questions,
    sign_questions,
)
from examples.tiny_model.scene import FEW, Scene, draw_scene, sample_scene
from examples.tiny_model.scene_questions import BOX_PROMPTS, SCENE_PROMPTS
from examples.tiny_model.words import Sign, draw_sign, sample_sign

Split = Literal["train", "heldout"]
ImageSpec = Scene | Chart | Sign
"""What an image shows: enough to draw it and to say everything about it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images and the questions about them; no image means text only."""

    specs: tuple[ImageSpec, ...]
    questions: tuple[Question, ...]
    description: str = ""
    """The image in words, for the tokenizer's vocabulary; empty where untold."""

    @cached_property
    def images(self) -> tuple[Image.Image, ...]:
        """The images drawn."""
        return tuple(draw(spec) for spec in self.specs)


def draw(spec: ImageSpec) -> Image.Image:
    """RGB image of SIDE x SIDE pixels."""
    match spec:
        case Scene():
            return draw_scene(spec)
        case Chart():
            return draw_chart(spec)
        case Sign():
            return draw_sign(spec)


def describe_scene(scene: Scene) -> str:
    """Name, middle and width of each shape, in hundredths of the side."""
    told = []
    for shape in scene.shapes:
        numbers = (round(100 * v / SIDE) for v in (shape.x, shape.y, 2 * shape.radius))
        told.append(" ".join((shape.name, *map(str, numbers))))
    return "Picture: " + ", ".join(told) + "."


def describe_chart(chart: Chart) -> str:
    """Colour and value of each bar, from left to right."""
    return "Chart: " + ", ".join(f"{bar.color} {bar.value}" for bar in chart.bars) + "."


def describe_sign(sign: Sign) -> str:
    """Kind, colour and letters of each line."""
    lines = (f"{line.color} {line.kind} {' '.join(line.text)}" for line in sign.lines)
    return "Sign: " + ", ".join(lines) + "."


def _ask(
    rng: random.Random,
    prompts: Sequence[Callable[..., Question | None]],
    rounds: int,
    *about: object,
) -> tuple[Question, ...]:
    """Up to ``rounds`` questions in random order, no two about the same fact."""
    asked: dict[str, Question] = {}
    for prompt in rng.sample(list(prompts) * 2, 2 * len(prompts)):
        question = prompt(rng, *about)
        if question is not None:
            asked.setdefault(question.fact or question.text, question)
        if len(asked) == rounds:
            break
    return tuple(asked.values())


LIST_SHARE = 0.4
"""Share of records that may ask for everything at once; what follows could be copied from it."""


def shapes_sample(rng: random.Random, split: Split) -> Sample:
    """One scene, ten rounds about colour, kind, number, place and size."""
    scene = sample_scene(rng)
    prompts = SCENE_PROMPTS if rng.random() < LIST_SHARE else SCENE_PROMPTS[1:]
    questions = _ask(rng, prompts, 10, scene)
    return Sample(specs=(scene,), questions=questions, description=describe_scene(scene))


def grounding_sample(rng: random.Random, split: Split) -> Sample:
    """One scene, up to five rounds of boxes."""
    while True:
        scene = sample_scene(rng)
        questions = _ask(rng, BOX_PROMPTS, 5, scene)
        if questions:
            return Sample(specs=(scene,), questions=questions)


def charts_sample(rng: random.Random, split: Split) -> Sample:
    """One chart, up to eight rounds."""
    chart = sample_chart(rng)
    prompts = CHART_PROMPTS if rng.random() < LIST_SHARE else CHART_PROMPTS[1:]
    questions = _ask(rng, prompts, 8, chart)
    return Sample(specs=(chart,), questions=questions, description=describe_chart(chart))


def reading_sample(rng: random.Random, split: Split) -> Sample:
    """One sign; words and numbers of the held-out split never occur in training."""
    sign = sample_sign(rng, held_out=split == "heldout")
    questions = sign_questions(rng, sign)
    questions = rng.sample(questions, len(questions))
    return Sample(specs=(sign,), questions=tuple(questions), description=describe_sign(sign))


def pairs_sample(rng: random.Random, split: Split) -> Sample:
    """Two scenes of few shapes, up to five rounds."""
    scenes = [sample_scene(rng, counts=FEW[:4]) for _ in range(2)]
    questions = pair_questions(rng, scenes[0], scenes[1])
    chosen = rng.sample(questions, min(5, len(questions)))
    return Sample(specs=tuple(scenes), questions=tuple(chosen))


def text_sample(rng: random.Random, split: Split) -> Sample:
    """No image, four rounds."""
    return Sample(specs=(), questions=_ask(rng, TEXT_PROMPTS, 4))


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of record; each becomes one dataset of the meta JSON."""

    name: str
    make: Callable[[random.Random, Split], Sample]
    share: float
    """Share of all training records."""


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="shapes", make=shapes_sample, share=0.28),
        Family(name="grounding", make=grounding_sample, share=0.22),
        Family(name="charts", make=charts_sample, share=0.14),
        Family(name="reading", make=reading_sample, share=0.24),
        Family(name="pairs", make=pairs_sample, share=0.06),
        Family(name="text", make=text_sample, share=0.06),
    )
}


def make_sample(seed: int, family: str, split: Split, index: int) -> Sample:
    """Sample ``index`` of a family; the same whoever asks."""
    return FAMILIES[family].make(stream(seed, family, split, index), split)


def image_names(family: str, split: Split, index: int, count: int) -> list[str]:
    """Paths of a sample's images relative to the data root, a thousand samples a folder."""
    stem = f"images/{family}/{split}/{index // 1000:03d}/{index:06d}"
    return [f"{stem}.jpg"] if count == 1 else [f"{stem}_{i + 1}.jpg" for i in range(count)]


def save_images(root: Path, sample: Sample, names: Sequence[str], *, quality: int) -> None:
    """Write a sample's images under ``root`` as JPEG files of a quality up to 95."""
    for image, name in zip(sample.images, names, strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=quality)


def conversation_record(
    identity: str, images: Sequence[str], questions: Sequence[Question]
) -> Record:
    """The record of questions about the images, of SIDE x SIDE pixels, at these paths."""
    return image_record(identity, images, SIDE, [(q.text, q.answer) for q in questions])
