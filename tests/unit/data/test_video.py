from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.video import choose_frames, expand_video_tag, open_video


class Fake:
    def __init__(self, num_frames: int, frames_per_second: float | None = None) -> None:
        self.num_frames, self.frames_per_second = num_frames, frames_per_second

    def frames(self, indices: object) -> list[Image.Image]:
        raise NotImplementedError


def choose(
    num_frames: int,
    limits: tuple[int, int],
    *,
    fps: float | None = None,
    clip: tuple[float, float] | None = None,
    seed: int | None = None,
) -> list[int]:
    return choose_frames(
        Fake(num_frames, fps),
        clip=clip,
        min_num_frame=limits[0],
        max_num_frame=limits[1],
        rng=None if seed is None else random.Random(seed),
        where="a.jsonl:3",
    )


def test_the_middle_of_each_interval() -> None:
    assert choose(12, (1, 4)) == [1, 4, 7, 10]
    assert choose(3, (1, 8)) == [0, 1, 2]
    assert choose(2, (4, 8)) == [0, 0, 1, 1]
    assert choose(1, (2, 8)) == [0, 0]


def test_training_draws_one_of_each_interval() -> None:
    drawn = [choose(12, (1, 4), seed=seed) for seed in range(20)]
    assert drawn[0] == choose(12, (1, 4), seed=0)
    assert len({tuple(frames) for frames in drawn}) > 5
    for frames in drawn:
        assert [frame // 3 for frame in frames] == [0, 1, 2, 3]


def test_a_clip() -> None:
    assert choose(100, (1, 2), fps=10, clip=(2.0, 3.9)) == [24, 34]
    assert choose(100, (1, 2), fps=10, clip=(9.0, 99.0)) == [92, 97]
    with pytest.raises(BadRecordError, match="lies outside the video of 10\\.0 s"):
        choose(100, (1, 2), fps=10, clip=(11.0, 12.0))
    with pytest.raises(BadRecordError, match="frame rate"):
        choose(100, (1, 2), clip=(1.0, 2.0))


def test_the_tag_becomes_numbered_images() -> None:
    frames = "Frame1: <image>\nFrame2: <image>\n"
    assert expand_video_tag("<video>\nWhat?", 2) == f"{frames}What?"
    assert expand_video_tag("Look: <video>", 2) == f"Look: {frames}"


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("")
    video = open_video(str(tmp_path), where="")
    assert video.num_frames == 3
    assert [image.getpixel((0, 0)) for image in video.frames([0, 1, 2])] == [
        (1, 0, 0),
        (9, 0, 0),
        (10, 0, 0),
    ]


def test_a_gif(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    video = open_video(str(path), where="")
    assert (video.num_frames, video.frames_per_second) == (3, 10.0)
    assert [image.getpixel((0, 0)) for image in video.frames([2, 0, 0])] == [
        (0, 0, 255),
        (255, 0, 0),
        (255, 0, 0),
    ]


def test_videos_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    expected = {"empty": "EMPTY_VIDEO", "gone.mp4": "MISSING_FILE", "broken.mp4": "BROKEN_VIDEO"}
    for name, code in expected.items():
        with pytest.raises(BadRecordError) as caught:
            open_video(str(tmp_path / name), where="a.jsonl:3")
        assert caught.value.code == code


GREYS = Path(__file__).with_name("greys.mp4")
"""H.264, 20 frames of 64 x 64 at 10 a second, frame i all of grey 10 + 12 i."""


def test_an_mp4_file() -> None:
    video = open_video(str(GREYS), where="a.jsonl:3")
    assert (video.num_frames, video.frames_per_second) == (20, 10.0)
    frames = video.frames([0, 7, 19])  # 7 lies between two key frames
    assert [frame.size for frame in frames] == [(64, 64)] * 3
    for frame, grey in zip(frames, (10, 94, 238), strict=True):
        assert all(abs(channel - grey) <= 3 for channel in frame.getpixel((30, 30)))


@pytest.mark.parametrize("kept", [0, 40, 1500])
def test_a_damaged_mp4_file_is_a_bad_record(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(GREYS.read_bytes()[:kept])

    def read() -> None:
        video = open_video(str(path), where="a.jsonl:3")
        video.frames(range(video.num_frames))

    with pytest.raises(BadRecordError, match=r"cut\.mp4") as caught:
        read()
    assert caught.value.code == "BROKEN_VIDEO"


def test_a_video_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError, match="no such file"):
        open_video(str(tmp_path / "none.mp4"), where="a.jsonl:3")
