"""The generator: reproducible, its answers true, its held-out side never seen in training."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from examples.tiny_model.charts import sample_chart
from examples.tiny_model.common import SIDE, box_text, stream, unit_box
from examples.tiny_model.make_pretrain import write_heldout, write_train, write_train_meta
from examples.tiny_model.records import FAMILIES, Sample, conversation_record, make_sample
from examples.tiny_model.scene import Scene, Shape, draw_scene, sample_scene
from examples.tiny_model.scene_questions import ask_box, ask_count, place_name
from examples.tiny_model.wordlist import HELD_OUT_WORDS, TRAIN_WORDS
from examples.tiny_model.words import MAX_LENGTH, is_held_out_number, sample_glyphs, sample_sign
from internvl_chat.data.schema import parse_record


def shape(kind: str, color: str, x: float, y: float, radius: float = 10.0) -> Shape:
    return Shape(kind=kind, color=color, x=x, y=y, radius=radius, fill=(0, 0, 0))


SCENE = Scene(
    background=(150, 150, 150),
    shapes=(
        shape("circle", "red", 28.0, 28.0),
        shape("square", "red", 84.0, 28.0),
        shape("star", "blue", 84.0, 84.0, radius=14.0),
    ),
)


def pixels(sample: Sample) -> list[bytes]:
    return [image.tobytes() for image in sample.images]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_is_a_function_of_its_key(family: str) -> None:
    one, again = (make_sample(3, family, "train", 5) for _ in range(2))
    assert one.questions == again.questions
    assert pixels(one) == pixels(again)
    others = [make_sample(4, family, "train", 5), make_sample(3, family, "heldout", 5)]
    assert all(other.questions != one.questions for other in others)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_questions_of_a_record_share_a_fact(family: str) -> None:
    for index in range(40):
        questions = make_sample(0, family, "train", index).questions
        facts = [q.fact or q.text for q in questions]
        assert questions
        assert len(facts) == len(set(facts))


@pytest.mark.parametrize("family", FAMILIES)
def test_records_are_good_records(family: str) -> None:
    for index in range(10):
        sample = make_sample(0, family, "train", index)
        names = [f"{i}.jpg" for i in range(len(sample.images))]
        record = conversation_record("x", names, sample.questions)
        parsed = parse_record(json.dumps(record), where="demo.jsonl:1")
        assert list(parsed.images) == names
        assert all(image.size == (SIDE, SIDE) for image in sample.images)


def test_boxes_are_hundredths_on_the_thousand_scale() -> None:
    assert unit_box((-1.0, 0.0, 56.0, 113.0)) == (0, 0, 500, 1000)
    assert box_text([(0, 11.2, 56, 112)]) == "<box>[[0, 100, 500, 1000]]</box>"


def test_a_box_question_names_a_shape_and_its_place() -> None:
    boxes = {
        "red circle": "<box>[[160, 160, 340, 340]]</box>",
        "red square": "<box>[[660, 160, 840, 340]]</box>",
        "blue star": "<box>[[620, 620, 870, 870]]</box>",
    }
    for index in range(20):
        question = ask_box(stream(0, index), SCENE)
        assert question is not None
        name = re.findall("<ref>(.*?)</ref>", question.answer)[0]
        if name == "blue star":  # a star's box is flatter than its circle
            assert question.answer.startswith("<ref>blue star</ref><box>[[620, ")
        else:
            assert question.answer == f"<ref>{name}</ref>{boxes[name]}"


def test_counts_are_true() -> None:
    truth = {
        "shapes": 3,
        "red shapes": 2,
        "blue shapes": 1,
        "circles": 1,
        "squares": 1,
        "stars": 1,
        "red circles": 1,
        "red squares": 1,
        "blue stars": 1,
    }
    seen = Counter()
    for index in range(200):
        question = ask_count(stream(1, index), SCENE)
        what = re.fullmatch("How many (.*) are there\\?", question.text)
        assert what is not None
        assert int(question.answer) == truth.get(what[1], 0)
        seen[question.answer] += 1
    assert set(seen) == {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0, 0, 20, 20), "top left"),
        ((46, 46, 66, 66), "middle"),
        ((46, 90, 66, 110), "bottom"),
        ((28, 46, 48, 66), None),  # its middle is 0.7 pixels from the line between two places
    ],
)
def test_places(box: tuple[float, float, float, float], place: str | None) -> None:
    assert place_name(box) == place


def test_shapes_never_touch_and_stay_inside() -> None:
    for index in range(100):
        shapes = sample_scene(stream(2, index)).shapes
        assert 1 <= len(shapes) <= 6
        for i, one in enumerate(shapes):
            assert min(one.box) >= 0
            assert max(one.box) <= SIDE
            for other in shapes[:i]:
                apart = ((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5
                assert apart > one.radius + other.radius


def test_a_full_sheet_has_a_glyph_in_every_cell() -> None:
    for index in range(20):
        sign = sample_glyphs(stream(5, index))
        boxes = {box for line in sign.lines for box in line.glyph_boxes}
        assert boxes == {
            (x, y, x + 28, y + 28) for x in range(0, SIDE, 28) for y in range(0, SIDE, 28)
        }
        assert {len(line.text) for line in sign.lines} == {1}


def test_a_shape_is_drawn_where_its_box_says() -> None:
    image = draw_scene(SCENE)
    assert image.getpixel((28, 28)) == (0, 0, 0)
    assert image.getpixel((28, 16)) == (150, 150, 150)  # two pixels above the circle


def test_bars_stand_on_the_axis_at_their_value() -> None:
    for index in range(50):
        chart = sample_chart(stream(3, index))
        assert 2 <= len(chart.bars) <= 5
        assert len({bar.color for bar in chart.bars}) == len(chart.bars)
        for bar in chart.bars:
            assert bar.box[3] - bar.box[1] == pytest.approx(bar.value * chart.unit)


def test_training_never_shows_held_out_words_or_numbers() -> None:
    assert not set(TRAIN_WORDS) & set(HELD_OUT_WORDS)
    for index in range(300):
        for held_out in (False, True):
            for line in sample_sign(stream(4, index), held_out=held_out).lines:
                assert len(line.text) <= MAX_LENGTH
                if line.kind == "word":
                    assert line.text in (HELD_OUT_WORDS if held_out else TRAIN_WORDS)
                if line.kind == "number":
                    assert is_held_out_number(int(line.text)) is held_out


def test_written_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        root = tmp_path / str(workers)
        counts = write_train(root, seed=0, num=40, workers=workers)
        write_train_meta(root, counts)
        assert counts == {
            "shapes": 11,
            "grounding": 9,
            "charts": 6,
            "reading": 10,
            "pairs": 2,
            "text": 2,
        }
    one, two = (
        {
            p.relative_to(tmp_path / w): p.read_bytes()
            for p in (tmp_path / w).rglob("*.*")
            if p.name != "meta.json"  # names the directory
        }
        for w in ("1", "2")
    )
    assert one == two


def test_held_out_questions_keep_to_their_quota(tmp_path: Path) -> None:
    write_heldout(tmp_path, seed=0, quota=3)
    skills: Counter[str] = Counter()
    for path in (tmp_path / "heldout").glob("*.jsonl"):
        for line in io.StringIO(path.read_text(encoding="utf-8")):
            record = json.loads(line)
            assert len(record["conversations"]) == 2
            images = record.get("image", [])
            for name in [images] if isinstance(images, str) else images:
                assert (tmp_path / name).is_file()
            skills[record["skill"]] += 1
    assert set(skills.values()) == {3}
    assert {"color", "kind", "count", "box", "chart_value", "read_word", "read_number"} <= set(
        skills
    )
