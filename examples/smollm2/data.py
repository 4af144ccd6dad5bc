"""Write the data of the SmolLM2 demo: coloured shapes, handwritten digits, general knowledge.

    python -m examples.smollm2.data --out work_dirs/smollm2_lora/data

``meta_projector.json`` lists what the projector learns from, ``meta_lora.json`` what the adapter
learns from (other images, plus text-only turns), ``heldout/*.jsonl`` what is asked afterwards:
scenes of another random stream and scans that are in no training file.

A token costs 135 M parameters twice, so records are short. What the projector learns from has no
system message, and its answers tell all that the image holds, because only what is told teaches it;
the adapter's records are conversations as they are asked later.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.annotations import DatasetEntry, Record, image_record, write_jsonl, write_meta
from examples.quickstart.digits import QUESTIONS, draw_scan, sample_look, split_scans
from examples.quickstart.digits import Look as DigitLook
from examples.smollm2.knowledge import KNOWLEDGE
from examples.tiny_model.common import COLOR_NAMES, SIDE, stream
from examples.tiny_model.scene import FEW, Scene, Shape, draw_scene, sample_scene
from examples.tiny_model.scene_questions import unique

logger = logging.getLogger(__name__)

COUNTS = FEW[:2]
MAX_ROUNDS = 2
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOR_CHANCE = 1 / len(COLOR_NAMES)
DIGIT_CHANCE = 1 / 10


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Records of each kind."""

    projector_scenes: int = 1200
    projector_digits: int = 900
    lora_scenes: int = 500
    lora_digits: int = 600
    knowledge_repeats: int = 3
    """Times that each text-only question is among the adapter's records."""
    held_out: int = 200
    """Questions of each of the two skills."""


def color_questions(rng: random.Random, scene: Scene) -> list[tuple[str, str, str]]:
    """(question, answer, skill) for each shape that its kind, or else its colour, names.

    A shape is asked about once: "the star is red" would give "which shape is red" away.
    """
    by_kind = unique(scene.shapes, lambda s: s.kind)
    by_color = unique(scene.shapes, lambda s: s.color)
    asked = []
    for shape in scene.shapes:
        may_color, may_kind = shape in by_kind, shape in by_color
        if may_color and (not may_kind or rng.random() < 0.7):
            asked.append((f"What color is the {shape.kind}?", shape.color, "color"))
        elif may_kind:
            asked.append((f"What shape is {shape.color}?", shape.kind, "kind"))
    rng.shuffle(asked)
    return asked[:MAX_ROUNDS]


def described_scenes(root: Path, *, seed: int, count: int) -> Iterator[Record]:
    """Scenes of a single shape, its colour and kind told.

    Of several shapes a frozen LLM could not know which is to be told first.
    """
    for index in range(count):
        scene = sample_scene(stream(seed, "smollm2", "projector", index), counts=(1,))
        rounds = [("What is in the picture?", scene.shapes[0].name)]
        name = f"scene_projector_{index:05d}"
        yield _image_record(root, draw_scene(scene), name, rounds) | {"system": ""}


def described_digits(root: Path, *, seed: int, count: int) -> Iterator[Record]:
    """Scans of the training part, the digit told as a figure and as a word."""
    for record in asked_digits(root, seed=seed, split="projector", count=count):
        turns = record["conversations"]
        turns[1]["value"] = f"{turns[1]['value']}, {WORDS[int(turns[1]['value'])]}"
        yield record | {"system": ""}


def asked_scenes(root: Path, *, seed: int, count: int) -> Iterator[Record]:
    """Scenes of one or two shapes with a round about each."""
    written = index = 0
    while written < count:
        rng = stream(seed, "smollm2", "lora", index)
        index += 1
        scene = sample_scene(rng, counts=COUNTS)
        rounds = [(question, answer) for question, answer, _ in color_questions(rng, scene)]
        if not rounds:
            continue
        yield _image_record(root, draw_scene(scene), f"scene_lora_{written:05d}", rounds)
        written += 1


def held_out_colors(root: Path, *, seed: int, count: int) -> Iterator[Record]:
    """One question each about the colour of a shape, every colour equally often."""
    rng = stream(seed, "smollm2", "heldout")
    for index in range(count):
        color = COLOR_NAMES[index % len(COLOR_NAMES)]
        scene, shape = _scene_with(rng, color)
        question = f"What color is the {shape.kind}?"
        name = f"scene_heldout_{index:05d}"
        record = _image_record(root, draw_scene(scene), name, [(question, color)])
        yield record | {"skill": "color"}


def _scene_with(rng: random.Random, color: str) -> tuple[Scene, Shape]:
    """A scene in which some shape of this colour is the only one of its kind."""
    while True:
        scene = sample_scene(rng, counts=COUNTS)
        for shape in unique(scene.shapes, lambda s: s.kind):
            if shape.color == color:
                return scene, shape


def asked_digits(root: Path, *, seed: int, split: str, count: int) -> Iterator[Record]:
    """Scans of the training part, each time with another look and wording."""
    train, _ = split_scans(seed)
    rng = stream(seed, "smollm2", "digits", split)
    for index in range(count):
        scan = train[index % len(train)]
        rounds = [(rng.choice(QUESTIONS), str(scan.digit))]
        image = draw_scan(scan, sample_look(rng))
        yield _image_record(root, image, f"digit_{split}_{index:05d}", rounds)


def held_out_digits(root: Path, *, seed: int, count: int) -> Iterator[Record]:
    """Scans that no training file holds, upright and in the middle."""
    _, held_out = split_scans(seed)
    rng = stream(seed, "smollm2", "digits", "heldout")
    for index, scan in enumerate(held_out[:count]):
        rounds = [(rng.choice(QUESTIONS), str(scan.digit))]
        image = draw_scan(scan, DigitLook())
        record = _image_record(root, image, f"digit_heldout_{index:05d}", rounds)
        yield record | {"skill": "digit"}


def knowledge_records(repeats: int) -> Iterator[Record]:
    """Text-only turns, so that the adapter learns to look without forgetting to talk."""
    for repeat in range(repeats):
        for number, (question, answer) in enumerate(KNOWLEDGE):
            yield image_record(f"knowledge_{repeat}_{number:02d}", [], SIDE, [(question, answer)])


def _image_record(root: Path, image: Any, name: str, rounds: Sequence[tuple[str, str]]) -> Record:
    path = f"images/{name}.png"
    (root / "images").mkdir(parents=True, exist_ok=True)
    image.save(root / path, compress_level=1)
    return image_record(name, [path], SIDE, rounds)


def write_data(root: Path, amounts: Amounts, *, seed: int) -> None:
    """Write images, annotation files, the two meta files and the held-out questions."""

    def entry(name: str, records: Iterator[Record]) -> DatasetEntry:
        path = root / f"{name}.jsonl"
        length = write_jsonl(path, records)
        logger.info("%s: %d records", path, length)
        return DatasetEntry(name=name, root=root, annotation=path, length=length)

    projector = [
        entry(
            "projector_scenes", described_scenes(root, seed=seed, count=amounts.projector_scenes)
        ),
        entry(
            "projector_digits", described_digits(root, seed=seed, count=amounts.projector_digits)
        ),
    ]
    digits = asked_digits(root, seed=seed, split="lora", count=amounts.lora_digits)
    lora = [
        entry("lora_scenes", asked_scenes(root, seed=seed, count=amounts.lora_scenes)),
        entry("lora_digits", digits),
        entry("knowledge", knowledge_records(amounts.knowledge_repeats)),
    ]
    held_out = root / "heldout"
    write_jsonl(held_out / "color.jsonl", held_out_colors(root, seed=seed, count=amounts.held_out))
    write_jsonl(held_out / "digit.jsonl", held_out_digits(root, seed=seed, count=amounts.held_out))
    write_meta(root / "meta_projector.json", projector)
    write_meta(root / "meta_lora.json", lora)
    stamp = {"seed": seed, **amounts.__dict__}
    (root / "written.json").write_text(json.dumps(stamp) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--seed", type=int, default=11)
    for name, default in Amounts().__dict__.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out, seed = arguments.pop("out"), arguments.pop("seed")
    write_data(out, Amounts(**arguments), seed=seed)


if __name__ == "__main__":
    main()
