"""Records to samples: images as shown, boxes and tiles that fit them, both backends, archives."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from internvl_chat.config import DecodeConfig, MediaConfig
from internvl_chat.data import fast_jpeg
from internvl_chat.data.dataset import Loaded, SampleLoader
from internvl_chat.data.encode import Encoder
from internvl_chat.data.images import decode_image
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import ConfigError
from tests.support.configs import encode_config, image_config, media_config
from tests.support.tokenizers import byte_level, with_special_tokens

SIDE = 28


def loader(**flags: Any) -> SampleLoader:
    encoder = Encoder(with_special_tokens(byte_level()), encode_config(num_image_token=4))
    flags = {"force_image_size": SIDE, **flags}
    media: MediaConfig = media_config(**flags)
    return SampleLoader(encoder, media, train=False)


def load(root: Path, record: dict[str, Any], box_format: str = "keep", **flags: Any) -> Loaded:
    spec = DatasetSpec(
        name="d",
        root=str(root),
        annotation="a.jsonl",
        box_format=box_format,  # type: ignore[arg-type]
    )
    turns = [
        {"from": "human", "value": record.pop("question", "Where?")},
        {"from": "gpt", "value": record.pop("answer", "There.")},
    ]
    raw = json.dumps({**record, "conversations": turns}).encode()
    return loader(**flags).load(raw, spec, where="a.jsonl:1")


def sideways(path: Path, orientation: int = 6) -> None:
    """160 x 112 as stored; a red box in it from (16, 28) to (48, 84)."""
    image = Image.new("RGB", (160, 112), "white")
    image.paste("red", (16, 28, 48, 84))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, quality=95, exif=exif)


def red_share(loaded: Loaded, box: tuple[int, int, int, int]) -> float:
    """Of the pixels in a box of 0-1000 of the one tile."""
    assert loaded.pixel_values is not None
    tile = loaded.pixel_values[0].permute(1, 2, 0).numpy().astype(int)
    x1, y1, x2, y2 = (round(v * SIDE / 1000) for v in box)
    inside = tile[y1:y2, x1:x2]
    return float(((inside[:, :, 0] > 180) & (inside[:, :, 1] < 90)).mean())


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("box_format", ["pixel_to_1000", "unit_to_1000", "keep"])
def test_boxes_fit_what_is_shown_when_the_record_states_the_stored_size(
    orientation: int, box_format: str, tmp_path: Path
) -> None:
    sideways(tmp_path / "a.jpg", orientation)
    answers = {
        "pixel_to_1000": "[16, 28, 48, 84]",
        "unit_to_1000": "[0.1, 0.25, 0.3, 0.75]",
        "keep": "<box>[[100, 250, 300, 750]]</box>",
    }
    record = {"image": "a.jpg", "width": 160, "height": 112, "answer": answers[box_format]}
    found = load(tmp_path, record, box_format)
    assert found.image_sizes == ((160, 112) if orientation == 1 else (112, 160),)
    numbers = found.encoded.text.partition("<box>[[")[2].partition("]]")[0]
    x1, y1, x2, y2 = (int(v) for v in numbers.split(","))
    assert red_share(found, (x1, y1, x2, y2)) > 0.8
    assert (x2 - x1, y2 - y1) == ((200, 500) if orientation == 1 else (500, 200))


def test_boxes_that_are_about_what_is_shown_stay(tmp_path: Path) -> None:
    sideways(tmp_path / "a.jpg")
    # Turned right, the box lies from (28, 16) to (84, 48) of 112 x 160.
    record = {"image": "a.jpg", "width": 112, "height": 160, "answer": "[28, 16, 84, 48]"}
    found = load(tmp_path, record, "pixel_to_1000")
    assert "<box>[[250, 100, 750, 300]]</box>" in found.encoded.text
    assert red_share(found, (250, 100, 750, 300)) > 0.8
    as_stored = load(
        tmp_path,
        {"image": "a.jpg", "width": 160, "height": 112, "answer": "[16, 28, 48, 84]"},
        "pixel_to_1000",
        apply_exif_orientation=False,
    )
    assert "<box>[[100, 250, 300, 750]]</box>" in as_stored.encoded.text
    assert red_share(as_stored, (100, 250, 300, 750)) > 0.8


@pytest.mark.parametrize("stated", [None, (224, 112), (112, 224)])
def test_tiles_are_those_of_the_image_as_shown(
    stated: tuple[int, int] | None, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (224, 112), "red").save(tmp_path / "a.jpg", exif=exif)
    record: dict[str, Any] = {"image": "a.jpg"}
    if stated:
        record |= dict(zip(("width", "height"), stated, strict=True))
    found = load(tmp_path, record, dynamic_image_size=True, max_dynamic_patch=2)
    assert found.num_tiles == (2,)
    assert found.image_sizes == ((112, 224),)


def write_photo(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    """Smooth, so that decoding at a reduced size changes little."""
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    image.convert(mode).save(path, quality=95)


@pytest.mark.parametrize("size", [(300, 200), (1000, 61), (29, 31), (20, 10), (640, 480)])
@pytest.mark.parametrize("pad2square", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_both_backends_give_the_same_tiles(
    size: tuple[int, int], pad2square: bool, dynamic: bool, tmp_path: Path
) -> None:
    write_photo(tmp_path / "a.jpg", size)
    flags = {"pad2square": pad2square, "dynamic_image_size": dynamic, "max_dynamic_patch": 6}
    flags["use_thumbnail"] = dynamic
    exact = load(tmp_path, {"image": "a.jpg"}, **flags)
    fast = load(tmp_path, {"image": "a.jpg"}, image_backend="fast", **flags)
    assert exact.num_tiles == fast.num_tiles
    assert exact.image_sizes == fast.image_sizes == (size,)
    assert exact.pixel_values is not None
    assert fast.pixel_values is not None
    assert exact.pixel_values.dtype == fast.pixel_values.dtype == torch.uint8
    difference = (exact.pixel_values.int() - fast.pixel_values.int()).abs().float()
    assert difference.mean() < 3
    assert difference.max() < (1 if pad2square else 64)


def test_fast_decodes_no_more_than_is_needed_and_leaves_others_to_pillow(tmp_path: Path) -> None:
    rule = DecodeConfig.as_shown(image_backend="fast")

    def size_of(name: str, least: tuple[int, int] | None) -> tuple[int, int]:
        raw = (tmp_path / name).read_bytes()
        fit = None if least is None else lambda size: least
        return decode_image(raw, where="", path="", decode=rule, fit=fit).rgb.size

    write_photo(tmp_path / "a.jpg", (640, 480))
    write_photo(tmp_path / "grey.jpg", (640, 480), "L")
    write_photo(tmp_path / "cmyk.jpg", (640, 480), "CMYK")
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    assert size_of("a.jpg", (100, 100)) == (160, 120)
    assert size_of("a.jpg", (161, 100)) == (320, 240)
    assert size_of("a.jpg", (321, 100)) == (640, 480)
    assert size_of("grey.jpg", (100, 100)) == (160, 120)
    assert size_of("a.jpg", None) == size_of("a.jpg", (9000, 10)) == (640, 480)
    assert size_of("cmyk.jpg", (100, 100)) == size_of("a.png", (100, 100)) == (640, 480)
    sideways(tmp_path / "turned.jpg", 6)
    assert size_of("turned.jpg", (20, 80)) == (56, 80)  # 80 x 56 before it is turned


def test_augmentation_sees_every_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(tmp_path / "a.jpg", (640, 480))
    asked: list[tuple[int, int]] = []
    real = fast_jpeg.decode

    def spy(
        raw: bytes, mode: str, size: tuple[int, int], least: tuple[int, int]
    ) -> np.ndarray | None:
        asked.append(least)
        return real(raw, mode, size, least)

    monkeypatch.setattr(fast_jpeg, "decode", spy)
    media = media_config(force_image_size=SIDE, image_backend="fast")
    encoder = Encoder(with_special_tokens(byte_level()), encode_config(num_image_token=4))
    train = SampleLoader(encoder, media, train=True)
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    raw = json.dumps({"image": "a.jpg", "conversations": turns}).encode()
    for data_augment in (False, True):
        spec = DatasetSpec(name="d", root=str(tmp_path), annotation="", data_augment=data_augment)
        train.load(raw, spec, where="", rng=random.Random(0))
    assert asked == [(SIDE, SIDE), (640, 480)]


def test_fast_without_its_package_is_an_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    fast_jpeg.library.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"internvl-chat\[fast\]"):
            loader(image_backend="fast")
    finally:
        fast_jpeg.library.cache_clear()


def test_records_of_an_archive(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images/x/1.png", buffer.getvalue())
    for root in ("a.zip/images", "a.zip/images/x/.."):
        found = load(tmp_path / root, {"image": "x/1.png"}, dynamic_image_size=True)
        assert found.image_sizes == ((40, 30),)
    assert image_config().decode == DecodeConfig.as_shown()


@pytest.mark.parametrize(
    "name",
    [
        "pipe",
        "folder",
        "loop",
        "a\0b",
        "n" * 300,
        ".",
        "sub/",
        "file.txt/x.png",
        "/dev/zero",
        "\u202e",
    ],
)
def test_odd_paths_are_bad_records(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(BadRecordError, match=r"^a\.jsonl:1: "):
        load(tmp_path, {"image": name})


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("x at 0x7f00"),
        AttributeError("<A object at 0x7f>"),
        OSError(5, "x"),
    ],
)
def test_whatever_a_decoder_raises_is_a_bad_record(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photo(tmp_path / "a.jpg", (40, 30))

    def fail(self: Any) -> None:
        raise failure

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(BadRecordError, match=r"a.jpg cannot be decoded: ") as caught:
        load(tmp_path, {"image": "a.jpg"})
    assert "0x" not in str(caught.value)
