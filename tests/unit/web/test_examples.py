"""Questions to click: shipped ones, and the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.errors import ConfigError, UserError
from internvl_chat.web.conversation import write_tags
from internvl_chat.web.examples import IMAGES, MOST, read_examples, shipped_examples
from internvl_chat.web.limits import QuestionLimits, look_at_uploads
from tests.support.training import ROOT


def test_a_model_gets_images_that_it_can_see() -> None:
    for size, side in ((112, 112), (223, 112), (224, 448), (448, 448)):
        examples = shipped_examples(size, compared=False)
        assert {Image.open(f).size for one in examples for f in one.files} == {(side, side)}
        assert sum(not one.files for one in examples) == 1, "one of nothing but text"
    assert shipped_examples(112, compared=True)[0].question == "Which digit is this?"


@pytest.mark.parametrize("size", [112, 448])
def test_every_example_can_be_asked(size: int) -> None:
    for one in shipped_examples(size, compared=True):
        media = look_at_uploads(
            [str(file) for file in one.files], root=IMAGES, num_frames=8, limits=QuestionLimits()
        )
        question, _ = write_tags(one.question, media)
        assert question.count("<image>") == len(one.files)
        assert len(one.shown) < 60, "it stands on a button"


def test_images_are_small_and_travel_in_the_package() -> None:
    used = {
        f for size in (112, 448) for one in shipped_examples(size, compared=True) for f in one.files
    }
    assert used == set(IMAGES.iterdir())
    assert sum(file.stat().st_size for file in used) < 60_000
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (listed,) = re.findall(r"package_data=\{(.*?)\]", setup, re.DOTALL)
    patterns = re.findall(r'"([\w/.*]+)"', listed)
    packed = {file for pattern in patterns for file in (ROOT / "internvl_chat").glob(pattern)}
    assert used <= packed
    assert {IMAGES.with_name(name) for name in ("page.css", "page.js")} <= packed


def test_ones_own_are_lines_as_of_chat_batch(tmp_path: Path) -> None:
    image, video = tmp_path / "a.png", tmp_path / "b.mp4"
    for file in (image, video):
        file.write_bytes(b"")
    lines = [
        {"id": 1, "question": "What is this?", "image": str(image)},
        {"question": "And these?", "image": [str(image), str(image)]},
        {"question": "What happens?", "video": str(video)},
        {"question": "Text alone?"},
    ]
    path = tmp_path / "examples.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    read = read_examples(path)
    assert [one.question for one in read] == [line["question"] for line in lines]
    assert [one.files for one in read] == [(image,), (image, image), (video,), ()]
    path.write_text('{"question": "again"}\n' * 50, encoding="utf-8")
    assert len(read_examples(path)) == MOST


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "examples.jsonl holds no question"),
        ('{"question": ""}', "examples.jsonl:1: the line has no question"),
        ('{"question": 3}', "examples.jsonl:1: the line has no question"),
        ("[]", "examples.jsonl:1: the line has no question"),
        ('{"question": "a"}\n{"question"', "examples.jsonl:2"),
        ('{"question": "a", "image": "gone.png"}', "examples.jsonl:1: gone.png is not there"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "examples.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_examples(tmp_path / "examples.jsonl")
    assert problem in str(caught.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match=r"--examples: nowhere.jsonl cannot be read"):
        read_examples(Path("nowhere.jsonl"))
