from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.config import DecodeConfig
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.video import choose_frames, expand_video_tag, open_video
from internvl_chat.data.videos.times import FrameTimes


class Fake:
    def __init__(
        self,
        num_frames: int,
        frames_per_second: float | None = None,
        starts: list[float] | None = None,
        end: float = 0.0,
    ) -> None:
        self.num_frames, self.frames_per_second = num_frames, frames_per_second
        self.times = starts and FrameTimes(starts=starts, end=end, rate=frames_per_second)

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


# A screen recording: 20 frames in the first second, then one a second.
RECORDED = [i / 20 for i in range(20)] + [float(i) for i in range(1, 11)]


def choose_recorded(count: int, clip: tuple[float, float] | None, seed: int | None) -> list[float]:
    chosen = choose_frames(
        Fake(len(RECORDED), 2.7, RECORDED, 11.0),
        clip=clip,
        min_num_frame=count,
        max_num_frame=count,
        rng=None if seed is None else random.Random(seed),
        where="a.jsonl:3",
    )
    return [RECORDED[i] for i in chosen]


def test_uneven_frames_are_chosen_by_their_times() -> None:
    assert choose_recorded(11, None, None) == [0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert choose_recorded(2, (5.0, 9.0), None) == [6, 8]
    # No more frames than are wanted: each is there, those of the ends included.
    assert choose_recorded(5, (5.0, 9.0), None) == [5, 6, 7, 8, 9]
    assert choose_recorded(4, (5.5, 6.5), None) == [5, 5, 6, 6]
    assert choose_recorded(2, (6.2, 6.4), None) == [6, 6]
    assert choose_recorded(2, (9.5, 99.0), None) == [9, 10]
    with pytest.raises(BadRecordError, match="lies outside the video of 11\\.0 s"):
        choose_recorded(2, (11.5, 12.0), None)


def test_training_draws_a_moment_of_each_interval() -> None:
    drawn = [choose_recorded(4, (2.0, 10.0), seed) for seed in range(20)]
    assert drawn[3] == choose_recorded(4, (2.0, 10.0), 3)
    for number in range(4):
        assert {times[number] for times in drawn} == {2.0 + 2 * number, 3.0 + 2 * number}


def test_even_times_change_nothing() -> None:
    """Numbers decide where they are as good as times: older runs go on with the same frames."""
    noisy = [i / 30 + (0.4 / 30 if i % 7 == 0 else 0) for i in range(300)]
    for clip in (None, (2.0, 7.7), (0.29, 3.3)):
        for seed in (None, 0, 1):
            by_number = choose(300, (4, 8), fps=30, clip=clip, seed=seed)
            video = Fake(300, 30, noisy, 10.0)
            by_time = choose_frames(
                video,
                clip=clip,
                min_num_frame=4,
                max_num_frame=8,
                rng=None if seed is None else random.Random(seed),
                where="",
            )
            assert by_time == by_number


def test_the_tag_becomes_numbered_images() -> None:
    frames = "Frame1: <image>\nFrame2: <image>\n"
    assert expand_video_tag("<video>\nWhat?", 2) == f"{frames}What?"
    assert expand_video_tag("Look: <video>", 2) == f"Look: {frames}"


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("")
    for hidden in (".DS_Store", "._frame1.png", ".frame2.png", "Thumbs.db"):
        (tmp_path / hidden).write_bytes(b"no image")
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


def test_a_frame_of_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for number in (1, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.jpg").write_bytes(b"no image")
    video = open_video(str(tmp_path), where="a.jsonl:3")
    with pytest.raises(BadRecordError, match=r"3\.jpg"):
        video.frames([0, 2])


def test_a_file_is_what_it_holds(tmp_path: Path) -> None:
    """Not what its name says; what is no video is told plainly."""
    image = Image.new("RGB", (4, 4))
    for kind in ("jpeg", "png", "webp", "bmp", "tiff"):
        image.save(tmp_path / f"{kind}.mp4", kind)
    contents = {
        "html.mp4": b"<!DOCTYPE html><html>404</html>",
        "lfs.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "list.mp4": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "zeros.mp4": bytes(5000),
        "empty.mp4": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {
        "jpeg.mp4": "it is a JPEG image",
        "png.mp4": "it is a PNG image",
        "webp.mp4": "it is a WebP image",
        "bmp.mp4": "it is a BMP image",
        "tiff.mp4": "it is a TIFF image",
        "html.mp4": "it is an HTML page",
        "lfs.mp4": "it is a git-LFS pointer",
        "list.mp4": "it is text .begins '#EXTM3U'",
        "concat.mp4": "it is text",
        "zeros.mp4": "it is filled with zero bytes",
        "empty.mp4": "it is an empty file",
    }
    for name, problem in expected.items():
        with pytest.raises(BadRecordError, match=problem) as caught:
            open_video(str(tmp_path / name), where="a.jsonl:3")
        assert caught.value.code == "NOT_A_VIDEO"
    (tmp_path / "film.gif").write_bytes(GREYS.read_bytes())
    assert open_video(str(tmp_path / "film.gif"), where="").num_frames == 20


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    for name in ("pipe.mp4", "loop.mp4"):
        with pytest.raises(BadRecordError, match=name) as caught:
            open_video(str(tmp_path / name), where="")
        assert caught.value.code == "UNREADABLE_FILE"
    with pytest.raises(BadRecordError, match="cannot read"):
        open_video("a\0b.mp4", where="")


def test_a_video_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.write(GREYS, "a/greys.mp4")
        archive.writestr("a/cut.mp4", GREYS.read_bytes()[:1500])
    root = str(tmp_path / "films.zip")
    video = open_video(f"{root}/a/greys.mp4", where="a.jsonl:3")
    assert [image.size for image in video.frames([0, 19])] == [(64, 64)] * 2
    with pytest.raises(BadRecordError, match=r"films\.zip/a/cut\.mp4"):
        open_video(f"{root}/a/cut.mp4", where="a.jsonl:3")
    with pytest.raises(BadRecordError) as caught:
        open_video(f"{root}/a/gone.mp4", where="a.jsonl:3")
    assert caught.value.code == "MISSING_FILE"


def test_the_images_of_an_animation_follow_the_checkpoints_rule(tmp_path: Path) -> None:
    """Transparent pixels: white, or the colour below as the published checkpoints have it."""
    clear = [Image.new("RGBA", (8, 8), (level, 0, 0, 0)) for level in (10, 200)]
    clear[1].putpixel((7, 7), (1, 2, 3, 255))  # an equal image would become none of its own
    clear[0].save(tmp_path / "a.webp", save_all=True, append_images=clear[1:], exact=True)
    clear[0].save(tmp_path / "1.png")
    (tmp_path / "folder").mkdir()
    clear[1].save(tmp_path / "folder" / "1.png")
    for decode, colour in ((DecodeConfig.as_shown(), (255,) * 3), (DecodeConfig.as_stored(), None)):
        for name in ("a.webp", "folder"):
            video = open_video(str(tmp_path / name), where="", decode=decode)
            pixel = video.frames([video.num_frames - 1])[0].getpixel((2, 2))
            assert pixel == (colour or pixel)
            assert (pixel == (255,) * 3) is (colour is not None)


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
    assert caught.value.code == ("BROKEN_VIDEO" if kept else "NOT_A_VIDEO")


def test_a_video_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError, match="no such file"):
        open_video(str(tmp_path / "none.mp4"), where="a.jsonl:3")


@pytest.mark.parametrize(
    "head",
    [b"#EXTM3U\n#EXTINF:1,\n", b"ffconcat version 1.0\n", b"<?xml?><MPD ", b"v=0\nc=IN IP4 "],
)
def test_a_list_of_other_files_with_bytes_behind(tmp_path: Path, head: bytes) -> None:
    """It is no text, and FFmpeg would open what it names all the same."""
    path = tmp_path / "a.mp4"
    path.write_bytes(head + b"file:///etc/passwd\n#\0\xff\xfe\x80" * 40)
    with pytest.raises(BadRecordError, match="no video: it is a list of other files"):
        open_video(str(path), where="")
