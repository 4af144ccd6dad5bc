"""The SmolLM2 demo's data: what is asked, what is held out."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from examples.quickstart.digits import split_scans
from examples.smollm2.data import WORDS, Amounts, color_questions, write_data
from examples.smollm2.evaluate import TEXT_QUESTION
from examples.smollm2.knowledge import KNOWLEDGE
from examples.tiny_model.common import COLOR_NAMES
from examples.tiny_model.scene import KINDS, Scene, Shape
from internvl_chat.data.meta import load_meta

SMALL = Amounts(
    projector_scenes=6,
    projector_digits=5,
    lora_scenes=4,
    lora_digits=3,
    knowledge_repeats=2,
    held_out=16,
)


def shape(kind: str, color: str) -> Shape:
    return Shape(kind=kind, color=color, x=50, y=50, radius=10, fill=(0, 0, 0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("smollm2") / "data"
    write_data(root, SMALL, seed=3)
    return root


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_shape_is_asked_about_once_and_only_if_named_without_doubt() -> None:
    scene = Scene(
        background=(0, 0, 0),
        shapes=(shape("star", "red"), shape("star", "blue"), shape("cross", "blue")),
    )
    for seed in range(20):
        asked = color_questions(random.Random(seed), scene)
        # Two stars: the red one is named by its colour only. Two blue ones: the cross by its kind.
        assert sorted(asked) == [
            ("What color is the cross?", "blue", "color"),
            ("What shape is red?", "star", "kind"),
        ]


def test_meta_files_list_what_was_written(written: Path) -> None:
    projector = {spec.name: spec.length for spec in load_meta(written / "meta_projector.json")}
    assert projector == {"projector_scenes": 6, "projector_digits": 5}
    lora = {spec.name: spec.length for spec in load_meta(written / "meta_lora.json")}
    assert lora == {"lora_scenes": 4, "lora_digits": 3, "knowledge": 2 * len(KNOWLEDGE)}
    for record in lines(written / "lora_scenes.jsonl"):
        assert (written / str(record["image"])).is_file()
        assert record["conversations"][0]["value"].startswith("<image>\n")


def test_what_the_projector_learns_from_tells_everything(written: Path) -> None:
    scenes = lines(written / "projector_scenes.jsonl")
    assert scenes[0]["system"] == ""
    for record in scenes:
        color, kind = record["conversations"][1]["value"].split(" ")
        assert color in COLOR_NAMES
        assert kind in KINDS
    for record in lines(written / "projector_digits.jsonl"):
        figure, word = record["conversations"][1]["value"].split(", ")
        assert WORDS[int(figure)] == word
    assert "system" not in lines(written / "lora_scenes.jsonl")[0]


def test_held_out_colors_are_balanced_and_scans_unseen(written: Path) -> None:
    colors = [r["conversations"][1]["value"] for r in lines(written / "heldout/color.jsonl")]
    assert set(Counter(colors).values()) == {2}
    train, held_out = split_scans(3)
    truths = [r["conversations"][1]["value"] for r in lines(written / "heldout/digit.jsonl")]
    assert truths == [str(scan.digit) for scan in held_out[:16]]
    assert not {s.index for s in train} & {s.index for s in held_out}


def test_files_depend_on_the_seed_only(written: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "again", SMALL, seed=3)
    for path in sorted(written.rglob("*.jsonl")):
        again = tmp_path / "again" / path.relative_to(written)
        assert again.read_text("utf-8") == path.read_text("utf-8"), path.name
    one = next(iter(sorted((written / "images").iterdir())))
    assert (tmp_path / "again" / "images" / one.name).read_bytes() == one.read_bytes()


def test_the_question_asked_at_the_end_is_never_trained_on() -> None:
    text = " ".join(part for pair in KNOWLEDGE for part in pair)
    assert "France" not in text
    assert "Paris" not in text
    assert "France" in TEXT_QUESTION
