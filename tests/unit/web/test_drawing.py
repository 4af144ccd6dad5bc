"""Boxes out of an answer and onto an image."""

from __future__ import annotations

import pytest
from PIL import Image

from internvl_chat.data.boxes import pad_to_square
from internvl_chat.web.drawing import COLOURS, LabelledBox, draw_boxes, find_boxes, from_padded

GREY = (120, 120, 120)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("<box>[[0, 100, 500, 1000]]</box>", [("", (0.0, 0.1, 0.5, 1.0))]),
        (
            "A <ref>red star</ref><box>[[10,20,30,40]]</box> and <box>[[1, 2, 3, 4]]</box>.",
            [("red star", (0.01, 0.02, 0.03, 0.04)), ("", (0.001, 0.002, 0.003, 0.004))],
        ),
        (
            "<ref> two </ref> <box>[[0, 0, 100, 100], [200, 200, 300, 300]]</box>",
            [("two", (0.0, 0.0, 0.1, 0.1)), ("two", (0.2, 0.2, 0.3, 0.3))],
        ),
        ("<box>[[900, 800, 100, 200]]</box>", [("", (0.1, 0.2, 0.9, 0.8))]),
        ("<box>[[1, 2, 3]]</box> <box>[[0, 0, 1001, 5]]</box> <box>cat</box>", []),
        ("[[1, 2, 3, 4]] without the element", []),
        ("<box>[[1, 2, 3, 4]]", []),
    ],
)
def test_boxes_and_labels_are_found(
    answer: str, found: list[tuple[str, tuple[float, ...]]]
) -> None:
    assert [(box.label, box.box) for box in find_boxes(answer)] == found


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (80, 80), (101, 64)])
def test_padding_is_undone(size: tuple[int, int]) -> None:
    box = (0.1, 0.25, 0.6, 0.9)
    assert from_padded(pad_to_square(box, size), size) == pytest.approx(box)


def test_what_lies_on_the_padding_is_cut() -> None:
    assert from_padded((0.0, 0.0, 1.0, 1.0), (300, 100)) == (0.0, 0.0, 1.0, 1.0)


def test_lines_lie_where_the_box_is() -> None:
    image = Image.new("RGB", (800, 600), GREY)
    boxes = [LabelledBox(box=(0.25, 0.5, 0.75, 0.9)), LabelledBox(box=(0.1, 0.1, 0.2, 0.2))]
    drawn = draw_boxes(image, boxes)
    assert drawn.size == (800, 600)
    assert image.getpixel((200, 400)) == GREY  # the image itself is as before
    for x in (201, 598):
        assert drawn.getpixel((x, 400)) == COLOURS[0]
    for y in (301, 537):
        assert drawn.getpixel((400, y)) == COLOURS[0]
    assert drawn.getpixel((400, 400)) == GREY
    assert drawn.getpixel((81, 90)) == COLOURS[1]
    # Seen on red ground as well: white outside, black inside.
    assert drawn.getpixel((199, 400)) == (255, 255, 255)
    assert drawn.getpixel((206, 400)) == (0, 0, 0)
    assert drawn.getpixel((197, 400)) == GREY


def test_a_padded_models_box_is_moved_to_the_image() -> None:
    wide = Image.new("RGB", (900, 300), GREY)
    # The image is the middle third of the square: a box around all of it.
    square = LabelledBox(box=(0.0, 1 / 3, 1.0, 2 / 3))
    drawn = draw_boxes(wide, [square], padded=True)
    for point in ((450, 1), (450, 298), (1, 150), (898, 150)):
        assert drawn.getpixel(point) == COLOURS[0]
    assert draw_boxes(wide, [square]).getpixel((450, 1)) == GREY


def test_small_images_are_enlarged_and_large_ones_reduced() -> None:
    for size, wanted in (
        ((112, 56), (512, 256)),
        ((4000, 2000), (1280, 640)),
        ((1, 900), (1, 900)),
    ):
        assert draw_boxes(Image.new("RGB", size), []).size == wanted


def test_colours_differ_and_begin_again() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
    count = len(COLOURS) + 1
    boxes = [LabelledBox(box=(i / 20, 0.2, i / 20 + 0.04, 0.9)) for i in range(count)]
    drawn = draw_boxes(Image.new("RGB", (1000, 1000), GREY), boxes)
    lines = [drawn.getpixel((round(i / 20 * 999) + 2, 500)) for i in range(count)]
    assert lines == [*COLOURS, COLOURS[0]]


@pytest.mark.parametrize("corner", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.95), (0.4, 0.5)])
def test_labels_stay_within_the_image(corner: tuple[float, float]) -> None:
    x, y = corner
    box = LabelledBox(box=(x, y, x + 0.05, y + 0.05), label="a rather long name of a thing")
    plain = draw_boxes(Image.new("RGB", (600, 600), GREY), [LabelledBox(box=box.box)])
    drawn = draw_boxes(Image.new("RGB", (600, 600), GREY), [box])
    plate = sum(pixel == COLOURS[0] for pixel in _pixels(drawn)) - sum(
        pixel == COLOURS[0] for pixel in _pixels(plain)
    )
    assert plate > 2500  # of some 240 x 24; a cut plate would be far smaller
    assert any(sum(pixel) > 720 for pixel in _pixels(drawn)), "white ink on the red plate"


def _pixels(image: Image.Image) -> list[tuple[int, int, int]]:
    raw = image.tobytes()
    return [(raw[i], raw[i + 1], raw[i + 2]) for i in range(0, len(raw), 3)]
