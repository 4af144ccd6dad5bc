"""GIF, WebP and PNG animations by their own durations; cut files are told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.video import choose_frames, open_video
from internvl_chat.data.videos.animation import CutOffError, frame_milliseconds

COLOURS = ("red", "lime", "blue", "white", "black")
DURATIONS = [2000, 50, 100, 0, 350]


def write(path: Path, durations: list[int] | int = DURATIONS) -> Path:
    images = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True)
    return path


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_each_image_has_its_own_duration(tmp_path: Path, ending: str) -> None:
    video = open_video(str(write(tmp_path / f"a.{ending}")), where="")
    assert video.num_frames == 5
    assert video.times is not None
    # 0 ms is what browsers show for 100 ms.
    assert video.times.starts == pytest.approx([0, 2.0, 2.05, 2.15, 2.25])
    assert video.times.end == pytest.approx(2.6)
    assert not video.times.is_even
    colours = [image.getpixel((3, 3)) for image in video.frames([4, 1, 1])]
    assert colours == [(0, 0, 0), (0, 255, 0), (0, 255, 0)]
    limits = {"min_num_frame": 1, "max_num_frame": 2, "rng": None, "where": ""}
    assert choose_frames(video, clip=(2.0, 2.2), **limits) == [2, 3]
    assert choose_frames(video, clip=None, **limits) == [0, 0]  # it rests there, for 2 of 2.6 s


def test_a_still_beside_the_animation_is_no_frame(tmp_path: Path) -> None:
    images = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    path = tmp_path / "a.png"
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=DURATIONS[1:], default_image=True
    )
    video = open_video(str(path), where="")
    assert video.num_frames == 4
    assert [image.getpixel((3, 3)) for image in video.frames([0, 3])] == [(0, 255, 0), (0, 0, 0)]


def test_an_even_gif_has_a_rate(tmp_path: Path) -> None:
    video = open_video(str(write(tmp_path / "a.gif", 40)), where="")
    assert video.frames_per_second == 25.0
    assert video.times is not None
    assert video.times.is_even
    still = tmp_path / "still.gif"
    Image.new("RGB", (4, 4), "red").save(still)
    assert open_video(str(still), where="").num_frames == 1


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_a_file_cut_anywhere_is_a_bad_record(tmp_path: Path, ending: str) -> None:
    raw = write(tmp_path / f"a.{ending}").read_bytes()
    path = tmp_path / f"cut.{ending}"
    told = []
    for kept in range(30, len(raw) - 2, 7):
        path.write_bytes(raw[:kept])
        try:
            video = open_video(str(path), where="a.jsonl:3")
            assert len(video.frames(range(video.num_frames))) == video.num_frames
        except BadRecordError as err:
            told.append(err)
    assert "TRUNCATED_IMAGE" in {err.code for err in told}
    assert all(str(path) in str(err) for err in told)


def test_a_gif_without_its_trailer_is_whole(tmp_path: Path) -> None:
    raw = write(tmp_path / "a.gif").read_bytes()
    assert len(frame_milliseconds(raw[:-1])) == 5
    with pytest.raises(CutOffError):
        frame_milliseconds(raw[:-3])


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_mutated_files_are_frames_or_a_bad_record(tmp_path: Path, ending: str) -> None:
    raw = write(tmp_path / f"a.{ending}").read_bytes()
    draw = random.Random(ending)
    path = tmp_path / f"b.{ending}"
    told = []
    for _ in range(60):
        mutated = bytearray(raw)
        for _ in range(draw.choice([1, 4])):
            mutated[draw.randrange(6, len(raw))] = draw.randrange(256)
        path.write_bytes(mutated)
        try:
            video = open_video(str(path), where="", max_pixels=10**6)
            assert len(video.frames(range(min(video.num_frames, 8)))) == min(video.num_frames, 8)
        except BadRecordError as err:
            told.append(err.problem)
    assert told
    assert all(told)
