"""Images and videos as tiles."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from internvl_chat import InternVLChatConfig
from internvl_chat.chat import load_image, load_video
from internvl_chat.chat.media import image_config_of, load_tiles
from internvl_chat.data import images
from internvl_chat.data.pixels import normalize_pixels, preprocess
from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import ConfigError
from tests.support.configs import image_config

GREYS = Path(__file__).parents[1] / "data/greys.mp4"
MEAN_GREY = 255 * 0.456


def grey(tile: torch.Tensor) -> float:
    """Middle pixel's green as a grey level again."""
    side = tile.shape[-1] // 2
    return float(tile[1, side, side] * 0.224 * 255 + MEAN_GREY)


def test_an_image_is_what_training_sees(tmp_path: Path) -> None:
    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    image.save(tmp_path / "a.png")
    wanted = normalize_pixels(preprocess(image, image_config(force_image_size=56)))
    assert torch.equal(load_image(str(tmp_path / "a.png"), image_size=56), wanted)
    assert torch.equal(load_image(image, image_size=56), wanted)
    assert wanted.shape == (1, 3, 56, 56)


def test_tiles_and_thumbnail() -> None:
    wide = Image.new("L", (300, 100))
    assert load_image(wide, image_size=28, max_num=6).shape == (4, 3, 28, 28)
    assert load_image(wide, image_size=28, max_num=6, use_thumbnail=False).shape[0] == 3
    assert load_image(wide, image_size=28, max_num=1).shape[0] == 1


def test_a_models_own_settings_are_followed() -> None:
    wide = Image.new("RGB", (300, 100), (255, 0, 0))
    tiling = {"dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 6}
    config = InternVLChatConfig(force_image_size=28, **tiling)
    assert load_tiles(wide, image_config_of(config)).shape == (4, 3, 28, 28)
    padded = InternVLChatConfig(force_image_size=28, pad2square=True)
    tile = load_tiles(wide, image_config_of(padded))[0]
    assert tile[0, 14, 14] > 2  # red across the middle
    assert abs(float(tile[0, 1, 14])) < 0.1  # the mean colour above it


def test_frames_are_the_middles_of_equal_stretches() -> None:
    tiles, num_patches_list = load_video(str(GREYS), num_segments=4, image_size=28)
    assert tiles.shape == (4, 3, 28, 28)
    assert num_patches_list == [1] * 4
    for tile, frame in zip(tiles, (2, 7, 12, 17), strict=True):
        assert abs(grey(tile) - (10 + 12 * frame)) < 4


def test_frames_become_one_tile_by_the_models_settings(tmp_path: Path) -> None:
    Image.new("RGB", (300, 100), (255, 0, 0)).save(tmp_path / "1.png")
    tiling = {"dynamic_image_size": True, "max_dynamic_patch": 6, "pad2square": True}
    model = SimpleNamespace(config=InternVLChatConfig(force_image_size=28, **tiling))
    tiles, counts = load_video(str(tmp_path), model=model, num_segments=2)
    assert (tiles.shape, counts) == ((2, 3, 28, 28), [1, 1])
    assert tiles[0, 0, 14, 14] > 2  # red across the middle
    assert abs(float(tiles[0, 0, 1, 14])) < 0.1  # the mean colour above it, as in training


def test_a_bound_in_seconds() -> None:
    tiles, _ = load_video(str(GREYS), num_segments=2, bound=(1.0, 1.9), image_size=28)
    assert abs(grey(tiles[0]) - (10 + 12 * 12)) < 4
    with pytest.raises(BadRecordError, match="lies outside"):
        load_video(str(GREYS), bound=(5.0, 6.0))


def test_a_short_video_repeats_frames() -> None:
    tiles, _ = load_video(str(GREYS), num_segments=25, image_size=28)
    assert tiles.shape[0] == 25


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(BadRecordError, match=r"broken\.jpg"):
        load_image(str(broken))


TRAINING_WORDS = re.compile(r"meta JSON|record|dataset|train|\broots?\b|--[a-z]+_[a-z_]+|\"clip\"")


def told(tmp_path: Path, path: str, *, as_video: bool, **options: Any) -> str:
    with pytest.raises((BadRecordError, ConfigError)) as caught:
        (load_video if as_video else load_tiles)(path.format(tmp_path), **options)
    return str(caught.value).replace(str(tmp_path), "~")


@pytest.mark.parametrize(
    ("path", "as_image", "as_video"),
    [
        ("{}/gone", "no such file: ~/gone. Check the path.", ""),
        ("{}/a.zip/gone.png", "no such file: ~/a.zip/gone.png", ""),
        ("{}/folder", "cannot read ~/folder: it is a folder", "~/folder holds no frame"),
        ("{}/pipe", "cannot read ~/pipe: it is a named pipe", "cannot read ~/pipe: it is no file"),
        ("{}/text", "~/text is no image that can be read: it is text", "~/text is no video: it is"),
        ("{}/b.png", "~/b.png cannot be decoded", "~/b.png is no video: it is a PNG image. Ask"),
        (
            str(GREYS),
            f"{GREYS} is no image that can be read: it is a video (MP4 or QuickTime).",
            "",
        ),
        ("foo://bar/b.png", "cannot read foo://bar/b.png: fsspec cannot open it", ""),
        ("{}/a\0b", "cannot read '~/a\\x00b'", "cannot read ~/a\0b"),
    ],
)
def test_messages_speak_of_the_file_alone(
    tmp_path: Path, path: str, as_image: str, as_video: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    Image.effect_noise((90, 90), 90).save(tmp_path / "whole.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "whole.png", "there.png")
    messages = [told(tmp_path, path, as_video=False, config=image_config_of(InternVLChatConfig()))]
    assert messages[0].startswith(as_image)
    if path != str(GREYS):
        messages.append(told(tmp_path, path, as_video=True, num_segments=2))
        assert messages[1].startswith(as_video or as_image)
    for message in messages:
        assert TRAINING_WORDS.search(message) is None, message
        assert message.count(path.format("~")) <= 1, "once is enough"


def test_limits_and_readers_are_told_without_flags_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    config = image_config_of(InternVLChatConfig())
    message = told(tmp_path, "{}/a.png", as_video=False, config=config, max_pixels=599)
    assert message == "~/a.png has 30 x 20 = 600 pixels, more than 599. Shrink it."
    message = told(tmp_path, "{}", as_video=True, bound=(0.0, 1.0))
    assert message == "~: a bound needs a video with a frame rate"
    monkeypatch.setattr(images, "decode_image", missing_package)
    message = told(tmp_path, "{}/a.png", as_video=False, config=config)
    assert message == "decord does not load. pip install it, or choose the video backend pyav."


def missing_package(*args: Any, **options: Any) -> None:
    raise ConfigError(
        "decord does not load",
        where="--video_backend",
        fix="pip install it, or choose --video_backend pyav.",
    )
