"""Boxes and sizes of records about images that EXIF orientation turns."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from internvl_chat.data.boxes import unit_to_1000
from internvl_chat.data.orientation import (
    ImageGeometry,
    sizes_as_shown,
    turn_boxes,
    turned,
    turned_size,
)
from internvl_chat.data.schema import BadRecordError

STORED = (40, 20)
BOX = (4, 2, 12, 10)  # pixels of the stored image


def geometry(orientation: int) -> ImageGeometry:
    return ImageGeometry(stored_size=STORED, orientation=orientation)


def box_after_turning(orientation: int) -> tuple[float, ...]:
    """Where the box is found on the turned image, 0 to 1000."""
    image = Image.new("L", STORED)
    image.paste(255, BOX)
    found = turned(image, orientation).getbbox()
    width, height = turned_size(STORED, orientation)
    assert found is not None
    return tuple(1000 * v / (width, height)[i % 2] for i, v in enumerate(found))


def text_of(turns: tuple[tuple[str, str], ...]) -> str:
    return turns[0][1]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_stored_image_are_turned_with_it(orientation: int) -> None:
    x1, y1, x2, y2 = (v / (40, 20)[i % 2] for i, v in enumerate(BOX))
    unit = f"It is at [{x1}, {y1}, {x2}, {y2}]."
    thousand = unit_to_1000(unit).text
    wanted = box_after_turning(orientation)
    for text, whole in ((unit, 1), (thousand, 1000)):
        turns = turn_boxes([("Where?", text)], [STORED], [geometry(orientation)], where="")
        numbers = text_of(turns).partition("[")[2].strip("[]().</box>").split("]")[0]
        found = [float(v) * 1000 / whole for v in numbers.split(",")]
        assert np.abs(np.subtract(found, wanted)).max() < 1e-6, text_of(turns)
    assert sizes_as_shown([STORED], [geometry(orientation)]) == ((20, 40),)


def test_decimals_and_other_texts_stay_as_written() -> None:
    text = "At [0.123, 0.4, 0.50, 0.6] and [0, 1, 1, 0], see [1] and v[0.1, 0.2, 0.3, 0.4]."
    turns = turn_boxes([("", text)], [STORED], [geometry(6)], where="")
    assert text_of(turns) == (
        "At [0.4, 0.123, 0.6, 0.50] and [0, 1, 1, 0], see [1] and v[0.1, 0.2, 0.3, 0.4]."
    )


@pytest.mark.parametrize(
    ("stated", "orientation"),
    [
        (None, 6),  # nothing says so: what people see
        ([(20, 40)], 6),  # the size as shown
        ([(400, 200)], 6),  # neither
        ([STORED], 3),  # 2, 3 and 4 keep the size
        ([STORED], 1),
    ],
)
def test_boxes_of_the_shown_image_stay(
    stated: list[tuple[int, int]] | None, orientation: int
) -> None:
    turns = (("Where?", "[0.1, 0.2, 0.3, 0.4]"),)
    assert turn_boxes(turns, stated, [geometry(orientation)], where="") == turns


def test_a_square_image_is_taken_as_shown() -> None:
    square = ImageGeometry(stored_size=(20, 20), orientation=6)
    turns = (("Where?", "[0.1, 0.2, 0.3, 0.4]"),)
    assert turn_boxes(turns, [(20, 20)], [square], where="") == turns


def test_boxes_of_images_that_turn_differently_belong_to_nothing() -> None:
    both = [geometry(6), geometry(1)]
    with pytest.raises(BadRecordError, match="nothing says which image") as caught:
        turn_boxes([("Where?", "[0.1, 0.2, 0.3, 0.4]")], [STORED, STORED], both, where="a:1")
    assert caught.value.code == "BOX"
    plain = (("How many?", "Two."),)
    assert turn_boxes(plain, [STORED, STORED], both, where="a:1") == plain
