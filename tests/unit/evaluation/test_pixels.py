"""Tiles and frames as the original evaluators make them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.schema import BadRecordError
from internvl_chat.evaluation.pixels import (
    TileRule,
    frame_indices,
    load_frames,
    load_tiles,
    tiles_of,
)
from internvl_chat.evaluation.prompts import shown_images
from internvl_chat.evaluation.sources import EncodedImage, ImageFile
from internvl_chat.evaluation.task import AS_STORED, Question, VideoClip
from internvl_chat.evaluation.videos import with_segments

WHOLE = TileRule(side=28, max_tiles=None, has_thumbnail=True, normalize_type="imagenet")
TILED = TileRule(side=28, max_tiles=6, has_thumbnail=True, normalize_type="imagenet")


@dataclass(frozen=True)
class Drawn:
    """A gradient of some size."""

    width: int
    height: int

    @property
    def label(self) -> str:
        return f"{self.width}x{self.height}"

    def open(self, decode: DecodeConfig = AS_STORED) -> Image.Image:
        row = np.linspace(0, 255, self.width, dtype=np.uint8)
        grey = np.repeat(row[None], self.height, 0)
        return Image.fromarray(np.stack([grey, grey.max() - grey, grey // 2], -1))


def test_the_whole_image_is_resized_by_pillow_without_padding() -> None:
    image = Drawn(91, 40).open()
    wanted = np.array(image.resize((28, 28), Image.Resampling.BICUBIC))
    tiles = tiles_of(image, WHOLE)
    assert tiles.shape == (1, 3, 28, 28)
    assert torch.equal(tiles[0].permute(1, 2, 0), torch.from_numpy(wanted))


def test_tiles_stand_row_by_row_with_the_whole_image_last() -> None:
    image = Drawn(90, 60).open()
    tiles = tiles_of(image, TILED)
    assert len(tiles) == 3 * 2 + 1
    big = np.array(image.resize((84, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(tiles[4].permute(1, 2, 0).numpy(), big[28:, 28:56])
    small = np.array(image.resize((28, 28), Image.Resampling.BICUBIC))
    assert np.array_equal(tiles[6].permute(1, 2, 0).numpy(), small)


def test_one_tile_has_no_thumbnail_and_a_checkpoint_may_want_none() -> None:
    assert len(tiles_of(Drawn(30, 30).open(), TILED)) == 1
    bare = TileRule(side=28, max_tiles=6, has_thumbnail=False, normalize_type="imagenet")
    assert len(tiles_of(Drawn(90, 60).open(), bare)) == 6


def test_several_images_stand_under_their_tags_or_under_one() -> None:
    images = (Drawn(60, 30), Drawn(30, 30))
    tagged = Question(id="0", prompt="<image> and <image>", images=images)
    assert load_tiles(tagged, TILED, "each")[1] == [3, 1]
    untagged = Question(id="0", prompt="Which?", images=images)
    assert load_tiles(untagged, TILED, "each")[1] == [4]
    assert load_tiles(Question(id="0", prompt="Which?"), TILED, "each") == (None, [])
    wrong = Question(id="q7", prompt="<image>", images=images)
    with pytest.raises(BadRecordError, match="q7: 1 <image> tags for 2 images"):
        load_tiles(wrong, TILED, "each")


def test_mmmu_shows_one_image_or_all_with_the_first_at_twice_its_size() -> None:
    images = (Drawn(30, 30), Drawn(90, 30))
    asked = Question(id="0", prompt="<image 1> or <image 2>?", images=images)
    assert load_tiles(asked, WHOLE, "enlarge_first")[1] == [1]
    tiles, counts = load_tiles(asked, TILED, "enlarge_first")
    twice = images[0].open().resize((60, 60), Image.Resampling.BILINEAR)
    first = tiles_of(twice, TILED)
    assert tiles is not None
    assert counts == [len(first) + 1]
    assert torch.equal(tiles[: len(first)], first)
    assert torch.equal(tiles[-1:], tiles_of(images[1].open(), WHOLE))
    assert shown_images(asked, dynamic=False, tiling="enlarge_first") == ("30x30",)
    assert shown_images(asked, dynamic=True, tiling="enlarge_first") == ("30x30", "90x30")


def test_frames_are_the_originals() -> None:
    many = frame_indices(16, first=0, last=160, rate=25.0, bounds=None)
    assert many == list(range(5, 156, 10))
    few = frame_indices(8, first=0, last=30, rate=25.0, bounds=None)
    assert few == [1, 5, 9, 12, 16, 20, 23, 27]
    bounded = frame_indices(4, first=0, last=100, rate=10.0, bounds=(2.0, 4.0))
    assert bounded == [22, 27, 32, 37]


def write_frames(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(1, count + 1):
        Image.new("RGB", (12, 12), (20 * number, 0, 0)).save(
            folder / f"{number:05d}.jpg", quality=100
        )


def numbers(clip: VideoClip) -> list[int]:
    return [round(np.array(frame)[5, 5, 0] / 20) for frame in load_frames(clip)]


def test_a_folder_of_frames_counts_from_one(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", 9)
    clip = VideoClip(path=str(tmp_path / "clip"), num_segments=4, frames_per_second=3)
    assert numbers(clip) == [2, 4, 6, 8]
    bounded = VideoClip(
        path=str(tmp_path / "clip"), num_segments=2, frames_per_second=3, bounds=(0.0, 1.0)
    )
    assert numbers(bounded) == [1, 2]


def test_bounds_outside_and_missing_frames_are_told(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", 9)
    far = VideoClip(
        path=str(tmp_path / "clip"), num_segments=2, frames_per_second=3, bounds=(50.0, 60.0)
    )
    with pytest.raises(BadRecordError, match="outside the video of 9 frames"):
        load_frames(far)
    with pytest.raises(BadRecordError, match="cannot list"):
        load_frames(VideoClip(path=str(tmp_path / "no"), num_segments=2, frames_per_second=3))


def test_a_gif_is_a_video_too(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (20 * n, 0, 0)) for n in range(8)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    clip = VideoClip(path=str(path), num_segments=4)
    question = Question(id="0", prompt="Frame1: <image>\nFrame2: <image>\nGo", video=clip)
    other = with_segments(question, 2)
    assert other.prompt == question.prompt  # it did not begin with four frames
    good = Question(id="0", prompt="Frame1: <image>\nFrame2: <image>\nGo", video=clip)
    two = VideoClip(path=str(path), num_segments=2)
    three = with_segments(Question(id="0", prompt=good.prompt, video=two), 3)
    assert three.prompt == "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nGo"
    tiles, counts = load_tiles(three, WHOLE, "each")
    assert tiles is not None
    assert (len(tiles), counts) == (3, [1, 1, 1])


def test_files_become_rgb_by_the_checkpoints_rule(tmp_path: Path) -> None:
    Image.new("RGBA", (28, 28), (0, 0, 0, 0)).save(tmp_path / "00001.jpg", format="PNG")
    raw = base64.b64encode((tmp_path / "00001.jpg").read_bytes()).decode()
    clip = VideoClip(path=str(tmp_path), num_segments=1, frames_per_second=1)
    asked = [
        Question(id="0", prompt="?", images=(ImageFile(str(tmp_path / "00001.jpg")),)),
        Question(id="1", prompt="?", images=(EncodedImage(raw, "a.png"),)),
        Question(id="2", prompt="?", video=clip),
    ]
    for decode, level in ((DecodeConfig.as_stored(), 0), (DecodeConfig.as_shown(), 255)):
        for question in asked:
            tiles, _ = load_tiles(question, replace(WHOLE, decode=decode), "each")
            assert tiles is not None
            assert tiles.unique().tolist() == [level]


def test_a_cell_holds_an_image_in_any_form_of_base64() -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 3)).save(file, format="PNG")
    plain = base64.b64encode(file.getvalue()).decode()
    forms = [plain, plain.rstrip("="), f"{plain[:9]}\n {plain[9:]}", f"{plain[:9]}*{plain[9:]}"]
    forms += [f"data:image/png;base64,{plain}", f"DATA:;base64,{quote(plain, safe='')}"]
    for text in forms:
        assert EncodedImage(text, "1").open().size == (5, 3)
    for text in ("data:image/png", "data:;base64,Y", "Y"):
        with pytest.raises(BadRecordError, match="no base64"):
            EncodedImage(text, "1").open()


def test_a_missing_image_of_a_benchmark_has_no_meta_json() -> None:
    with pytest.raises(BadRecordError) as caught:
        ImageFile("/nowhere/a.jpg", shown="a.jpg").open()
    assert "Look where the data lie (docs/eval_data.md)" in str(caught.value)
    assert "meta JSON" not in str(caught.value)
