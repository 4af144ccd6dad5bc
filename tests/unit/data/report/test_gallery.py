"""A loaded record and what the page shows of it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from internvl_chat.data.boxes import PlacedBoxes, placed_boxes
from internvl_chat.data.dataset import SampleLoader
from internvl_chat.data.encode import Encoder
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.report import gallery
from internvl_chat.data.report.gallery import GallerySample, boxes_by_image, gallery_sample
from internvl_chat.data.report.tile_images import TiledImage, assemble, jpeg_address, split_tiles
from tests.support import tokenizers
from tests.support.configs import encode_config, image_config, media_config

YELLOW, BLUE = (250, 220, 30), (90, 140, 180)


# ---- boxes in texts -----------------------------------------------------------------------------


def test_boxes_of_both_kinds_and_their_places() -> None:
    text = "a <box>[[0, 500, 1000, 750], [1, 2, 3, 4]]</box> b [0.1, 0.2, 0.3, 0.4] c"
    first, second = placed_boxes(text)
    assert text[first.start : first.end] == "<box>[[0, 500, 1000, 750], [1, 2, 3, 4]]</box>"
    assert first.boxes == ((0, 0.5, 1, 0.75), (0.001, 0.002, 0.003, 0.004))
    assert text[second.start : second.end] == "[0.1, 0.2, 0.3, 0.4]"
    assert second.boxes == ((0.1, 0.2, 0.3, 0.4),)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1, 2]", "[0, 1, 1, 0]", "v2[0.1, 0.2, 0.3, 0.4]", "[0.1, 0.2, 0.3, 1.4]"),
        *("<box>[[1, 2, 3]]</box>", "<box>[[1, 2, 3, 1001]]</box>", "<box>nowhere</box>"),
        r"\left[0.1, 0.2, 0.3, 0.4]",
    ],
)
def test_what_is_no_box(text: str) -> None:
    assert placed_boxes(text) == []


def test_boxes_belong_to_the_image_before_them_and_have_names() -> None:
    text = (
        "<img></img> and <img></img> <ref> red\nstar </ref> <box>[[1, 2, 3, 4]]</box>"
        "<img></img>[0.9, 0.8, 0.1, 0.2]"
    )
    first, second, third = boxes_by_image(text, placed_boxes(text), 3)
    assert first == []
    assert [(box.label, box.group) for box in second] == [("red\nstar", 0)]
    assert third[0].corners == (0.1, 0.2, 0.9, 0.8)  # drawn in order
    assert third[0].label == ""
    before = boxes_by_image("[0.1, 0.2, 0.3, 0.4] <img></img>", [PlacedBoxes(0, 20, ())], 1)
    assert before == [[]]


# ---- tiles --------------------------------------------------------------------------------------


def test_tiles_are_put_together_again() -> None:
    whole = torch.arange(2 * 3, dtype=torch.uint8).view(2, 3) * 40  # rows x columns
    tiles = [torch.full((3, 4, 4), int(value), dtype=torch.uint8) for value in whole.flatten()]
    image = TiledImage(
        tiles=torch.stack([*tiles, tiles[0]]),
        grid=(3, 2),
        has_thumbnail=True,
        size=(120, 80),
        shown_size=(120, 80),
    )
    shown = assemble(image, longest_side=100)
    assert shown.size == (12, 8)  # not larger than the tiles
    found = np.asarray(shown)[..., 0].reshape(2, 4, 3, 4).mean(axis=(1, 3))
    assert np.allclose(found, whole, atol=3)
    assert assemble(image, longest_side=6).size == (6, 4)


def test_shapes_of_squeezed_and_padded_images() -> None:
    pixels = torch.zeros((2, 3, 8, 8), dtype=torch.uint8)
    sizes = [(40, 10), (10, 40)]
    squeezed = split_tiles(pixels, (1, 1), sizes, image_config(), max_tiles=1)
    assert [assemble(one, longest_side=8).size for one in squeezed] == [(8, 2), (2, 8)]
    padded = split_tiles(pixels, (1, 1), sizes, image_config(pad2square=True), max_tiles=1)
    assert [assemble(one, longest_side=8).size for one in padded] == [(8, 8), (8, 8)]


def test_tiles_of_several_images() -> None:
    images = image_config(dynamic_image_size=True, max_dynamic_patch=6, use_thumbnail=True)
    pixels = torch.zeros((4, 3, 8, 8), dtype=torch.uint8)
    wide, square = split_tiles(pixels, (3, 1), [(200, 100), (50, 50)], images, max_tiles=3)
    assert (wide.grid, wide.has_thumbnail, len(wide.tiles)) == ((2, 1), True, 3)
    assert (square.grid, square.has_thumbnail, len(square.tiles)) == ((1, 1), False, 1)


def test_the_address_is_a_jpeg() -> None:
    address = jpeg_address(Image.new("RGB", (30, 20), YELLOW))
    head, data = address.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (30, 20))


# ---- records ------------------------------------------------------------------------------------


def sample(tmp_path: Path, record: dict[str, Any], **flags: Any) -> GallerySample:
    """Load a record as training does, and show it."""
    image = Image.new("RGB", (200, 100), BLUE)
    image.paste(YELLOW, (20, 40, 60, 80))
    image.save(tmp_path / "wide.png")
    frames = [Image.new("RGB", (40, 20), (level, level, level)) for level in (0, 80, 160, 240)]
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:], duration=500)
    media = media_config(force_image_size=56, **flags)
    encoder = Encoder(
        tokenizers.byte_level(), encode_config(num_image_token=2, max_seq_length=2048)
    )
    spec = DatasetSpec(name="one", root=str(tmp_path), annotation="a.jsonl")
    loader = SampleLoader(encoder, media, train=False)
    loaded = loader.load(json.dumps(record).encode(), spec, where="a.jsonl:7")
    return gallery_sample(loaded, spec, encoder, media.images, where="a.jsonl:7")


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_an_image_with_its_box(tmp_path: Path) -> None:
    answer = "<ref>yellow</ref><box>[[100, 400, 300, 800]]</box>"
    record = {"image": "wide.png", "conversations": turns("Where?", answer)}
    found = sample(tmp_path, record, dynamic_image_size=True, max_dynamic_patch=2)
    (image,) = found.shown_images
    assert (found.dataset, found.where, found.num_tiles) == ("one", "a.jsonl:7", 2)
    assert (image.width, image.height, image.columns, image.rows) == (200, 100, 2, 1)
    assert [(box.corners, box.label) for box in image.boxes] == [((0.1, 0.4, 0.3, 0.8), "yellow")]
    with Image.open(io.BytesIO(base64.b64decode(image.address.split(",")[1]))) as shown:
        width, height = shown.size
        assert width == 2 * height
        inside = shown.getpixel((round(0.2 * width), round(0.6 * height)))
        outside = shown.getpixel((round(0.4 * width), round(0.6 * height)))
    assert np.abs(np.subtract(inside, YELLOW)).max() < 25
    assert np.abs(np.subtract(outside, BLUE)).max() < 25
    assert found.remarks == ()
    assert "".join(p.text for p in found.pieces if p.mark == 0) == answer.partition("</ref>")[2]
    assert found.num_supervised == sum(
        len(tokenizers.byte_level()(text, add_special_tokens=False)["input_ids"])
        for text in (answer, "<|im_end|>")
    )


def test_what_should_be_known_of_a_sample(tmp_path: Path) -> None:
    answer = "<box>[[900, 1, 2, 3]]</box> <box>[[1, 2]]</box> [0.9, 0.1, 0.2, 0.3]"
    record = {
        **{"image": "wide.png", "width": 30, "height": 20, "photo": "x.jpg"},
        "conversations": [{"from": "gpt", "value": "Hello."}, *turns("Where?", answer)],
    }
    codes = [remark.split(":")[0] for remark in sample(tmp_path, record).remarks]
    assert codes == [
        *("MEDIA_KEY", "LEADING_ANSWER", "SIZE_DIFFERS"),
        *("BOX_INVERTED", "BOX_MALFORMED", "BOX_INVERTED"),
    ]


def test_a_video_is_its_frames(tmp_path: Path) -> None:
    record = {"video": "v.gif", "conversations": turns("<video>\nWhat? [0.1, 0.2, 0.3, 0.4]", "x")}
    found = sample(tmp_path, record, min_num_frame=2, max_num_frame=2)
    assert [image.is_frame for image in found.shown_images] == [True, True]
    assert [image.boxes for image in found.shown_images] == [(), ()]
    assert [remark.split(":")[0] for remark in found.remarks] == ["NOT_DRAWN"]
    levels = []
    for image in found.shown_images:
        with Image.open(io.BytesIO(base64.b64decode(image.address.split(",")[1]))) as shown:
            levels.append(shown.getpixel((5, 5))[0])
    assert levels[0] < levels[1] - 60


def test_text_alone_has_no_boxes(tmp_path: Path) -> None:
    found = sample(tmp_path, {"conversations": turns("Hi [0.1, 0.2, 0.3, 0.4]", "Ho")})
    assert found.shown_images == ()
    assert {piece.mark for piece in found.pieces} == {-1}


def test_a_long_text_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "LONGEST_TEXT", 100)
    found = sample(tmp_path, {"conversations": turns("x" * 500, "answer")})
    whole = sum(len(piece.text) * piece.times for piece in found.pieces)
    assert 100 <= whole <= 110
    assert found.num_hidden_characters > 400
    table = found.as_json()
    assert json.loads(json.dumps(table))["pieces"][0] == ["<|im_start|>", "prompt", 1, 1, -1]
