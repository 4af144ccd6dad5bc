from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from internvl_chat.data import images, storage
from internvl_chat.data.images import load_image
from internvl_chat.data.pixels import jpeg_augment, normalize_pixels, pad_square, preprocess
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.storage import resolve_path
from internvl_chat.data.tiles import choose_grid, count_tiles
from internvl_chat.model.constants import NORMALIZATION
from tests.support.configs import image_config


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


# -- pixels -------------------------------------------------------------------------------------


def test_resize_is_within_two_levels_of_pillow() -> None:
    image = noise(97, 61)
    ours = preprocess(image, image_config(force_image_size=28))
    theirs = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC))
    assert (ours.shape, ours.dtype) == ((1, 3, 28, 28), torch.uint8)
    difference = np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - theirs.astype(int))
    assert difference.max() <= 2


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = noise(28, 28)
    ours = preprocess(image, image_config(force_image_size=28))
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(image))


def test_padding_to_a_square_uses_the_mean_colour() -> None:
    padded = pad_square(Image.new("RGB", (4, 2), (9, 9, 9)))
    rows = np.asarray(padded)[:, 0].tolist()
    assert padded.size == (4, 4)
    assert rows == [[123, 116, 103], [9, 9, 9], [9, 9, 9], [123, 116, 103]]
    assert pad_square(Image.new("RGB", (1, 4))).size == (4, 4)


def test_normalize() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    for kind, (mean, std) in NORMALIZATION.items():
        shape = (1, 3, 1, 1)
        expected = (pixels / 255.0 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        ours = normalize_pixels(pixels, normalize_type=kind)  # type: ignore[arg-type]
        # One rounding less than the three separate steps in fp32.
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert normalize_pixels(pixels, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_augmentation_is_a_function_of_its_generator() -> None:
    image = noise(32, 32)
    once = np.asarray(jpeg_augment(image, random.Random("1:0:7")))
    again = np.asarray(jpeg_augment(image, random.Random("1:0:7")))
    others = [np.asarray(jpeg_augment(image, random.Random(f"1:1:{i}"))) for i in range(5)]
    assert np.array_equal(once, again)
    assert not all(np.array_equal(once, other) for other in others)
    assert not np.array_equal(once, np.asarray(image))


@pytest.mark.parametrize("quality", [75, 100])
def test_the_augmentation_draws_from_75_to_100(
    quality: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, buffer = noise(32, 32), io.BytesIO()
    drawn: list[tuple[int, int]] = []

    class Extreme(random.Random):
        def randint(self, a: int, b: int) -> int:
            drawn.append((a, b))
            return a if quality == 75 else b

    image.save(buffer, format="JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    assert np.array_equal(np.asarray(jpeg_augment(image, Extreme())), expected)
    assert drawn == [(75, 100)]


# -- tiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "max_tiles", "grid"),
    [
        ((448, 448), 6, (1, 1)),
        ((800, 400), 6, (2, 1)),
        ((400, 800), 6, (1, 2)),
        ((1344, 448), 6, (3, 1)),
        # A tie of 1x1, 2x2 and 3x3: a larger grid only if the area exceeds half of its own.
        ((600, 600), 12, (1, 1)),
        ((640, 640), 12, (2, 2)),
        ((1000, 1000), 12, (3, 3)),
        ((950, 950), 12, (2, 2)),
        ((5000, 100), 6, (6, 1)),
        ((100, 100), 1, (1, 1)),
    ],
)
def test_grid(size: tuple[int, int], max_tiles: int, grid: tuple[int, int]) -> None:
    assert choose_grid(size, min_tiles=1, max_tiles=max_tiles, image_size=448) == grid


def test_tiles_are_cut_row_by_row_with_the_thumbnail_last() -> None:
    config = image_config(
        force_image_size=2, dynamic_image_size=True, use_thumbnail=True, max_dynamic_patch=6
    )
    values = np.zeros((4, 6, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 40 * (3 * row + column)
    tiles = preprocess(Image.fromarray(values), config, max_tiles=6)
    assert tiles.shape == (7, 3, 2, 2)
    assert tiles[:6, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]
    assert all((tile == tile[0, 0, 0]).all() for tile in tiles[:6])
    assert count_tiles((6, 4), config, max_tiles=6) == 7
    assert count_tiles((2, 2), config, max_tiles=6) == 1  # no thumbnail of a single tile


def test_several_images_share_the_budget() -> None:
    config = image_config(max_dynamic_patch=6)
    assert [config.tile_budget(n, None) for n in (0, 1, 2, 4, 7)] == [6, 6, 3, 1, 1]
    assert config.tile_budget(2, 12) == 6


def test_counting_agrees_with_cutting() -> None:
    rng = random.Random(0)
    for pad in (False, True):
        config = image_config(
            force_image_size=4, dynamic_image_size=True, use_thumbnail=True, pad2square=pad
        )
        for _ in range(20):
            size = (rng.randint(1, 40), rng.randint(1, 40))
            budget = rng.randint(1, 8)
            made = preprocess(noise(*size), config, max_tiles=budget)
            assert len(made) == count_tiles(size, config, max_tiles=budget)


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.tif" if mode in ("F", "I") else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)).save(path)
    elif mode in ("I", "F"):
        Image.new(mode, (4, 4), 128).save(path)
    else:
        Image.new("RGB", (4, 4), (128, 128, 128)).convert(mode).save(path)
    image = load_image(str(path))
    assert (image.mode, image.size) == ("RGB", (4, 4))
    if mode in ("L", "I;16", "I", "F"):
        assert image.getpixel((0, 0)) == (128, 128, 128)


def test_broken_files_have_their_own_reasons(tmp_path: Path) -> None:
    noise(64, 64).save(tmp_path / "whole.jpg")
    raw = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    expected = {
        "gone.jpg": "MISSING_FILE",
        "cut.jpg": "TRUNCATED_IMAGE",
        "text.jpg": "NOT_AN_IMAGE",
        "empty.jpg": "NOT_AN_IMAGE",
        ".": "UNREADABLE_FILE",
    }
    for name, code in expected.items():
        with pytest.raises(BadRecordError, match=r"^a\.jsonl:3: ") as caught:
            load_image(str(tmp_path / name), where="a.jsonl:3")
        assert caught.value.code == code, name


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadRecordError, match="20000 x 10000 = 200000000 pixels") as caught:
        load_image(str(tmp_path / "bomb.png"), where="a.jsonl:3")
    assert caught.value.code == "TOO_MANY_PIXELS"
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error")
def test_the_limit_on_pixels_is_ours_not_pillows(tmp_path: Path) -> None:
    Image.new("1", (12_000, 8_000)).save(tmp_path / "large.png")  # Pillow warns at 89 million
    with pytest.raises(BadRecordError, match="more than 1000"):
        load_image(str(tmp_path / "large.png"), max_pixels=1000)
    with images.open_image(str(tmp_path / "large.png"), where="", max_pixels=10**8) as image:
        assert image.size == (12_000, 8_000)


def test_transient_errors_are_retried_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(4, 4).save(tmp_path / "a.png")
    waits: list[float] = []
    failures = [errno.EIO, errno.ESTALE, errno.EIO]
    real_open = os.open

    def flaky(path: str, *rest: Any) -> Any:
        if failures:
            raise OSError(failures.pop(), "transient")
        return real_open(path, *rest)

    monkeypatch.setattr(storage.time, "sleep", waits.append)
    monkeypatch.setattr(storage.os, "open", flaky)
    assert load_image(str(tmp_path / "a.png")).size == (4, 4)
    assert waits == [0.1, 0.4, 1.6]
    failures.extend([errno.EIO] * 4)
    with pytest.raises(BadRecordError, match="transient"):
        load_image(str(tmp_path / "a.png"))
    assert not failures


def test_paths_stay_within_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"")
    (root / "link.png").symlink_to(outside)
    ok = ["a.png", "sub/../a.png", "./a.png", str(root / "a.png")]
    for path in ok:
        assert resolve_path(str(root), path, where="") == str(root / "a.png")
    for path in ["../secret.png", "sub/../../secret.png", str(outside), str(root) + "2/a.png"]:
        with pytest.raises(BadRecordError, match="lies outside") as caught:
            resolve_path(str(root), path, where="a.jsonl:3")
        assert caught.value.code == "OUTSIDE_ROOT"
    assert resolve_path(str(root), "link.png", where="") == str(root / "link.png")
    with pytest.raises(BadRecordError, match="leads out of") as caught:
        resolve_path(str(root), "link.png", where="", strict=True)
    assert caught.value.code == "SYMLINK_ESCAPE"
