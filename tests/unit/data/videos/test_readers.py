"""Video files: the frame asked for or an error, the same from every library."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from internvl_chat.cli.options import VideoReader
from internvl_chat.config import VideoBackend
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.video import Video, choose_frames, open_video
from internvl_chat.data.videos.readers import READERS, usable_times
from internvl_chat.errors import ConfigError
from tests.support.clips import number_of, shift_clip, write_clip
from tests.support.configs import media_config

BACKENDS: tuple[VideoBackend, ...] = ("decord", "pyav")
QUIET = {"x265-params": "log-level=0:pools=none"}
UNEVEN = [i / 25 for i in range(25)] + [1.0 + i / 2 for i in range(25)]


def read(path: Path, backend: VideoBackend) -> Video:
    return open_video(str(path), where="a.jsonl:3", backend=backend)


def numbers(video: Video, wanted: Sequence[int] | None = None) -> list[int | None]:
    if wanted is None:
        wanted = range(video.num_frames)
    return [number_of(image) for image in video.frames(wanted)]


CLIPS = {
    "plain.mp4": {},
    "plain.mkv": {},
    "ntsc.mp4": {"rate": Fraction(30000, 1001)},
    "ntsc.mkv": {"rate": Fraction(30000, 1001)},
    "uneven.mp4": {"seconds": UNEVEN},
    "uneven.mkv": {"seconds": UNEVEN},
    "open.mp4": {"options": {"x264-params": "open-gop=1"}},
    "hevc.mp4": {"codec": "libx265", "options": QUIET},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "xvid.avi": {"codec": "mpeg4"},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "one.mp4": {"num_frames": 1},
    "all_key.mp4": {"gop": 1},
}


@pytest.mark.parametrize("name", CLIPS)
def test_both_libraries_give_the_frames_asked_for(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, **CLIPS[name])
    videos = [read(path, backend) for backend in BACKENDS]
    count = CLIPS[name].get("num_frames", 50)
    for video in videos:
        assert numbers(video) == list(range(count))
        jumps = list(range(count - 1, 0, -9))
        assert numbers(video, jumps) == jumps
    images = [video.frames([0, count - 1]) for video in videos]
    for one, other in zip(*images, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    if all(video.times for video in videos):
        starts = [video.times.starts for video in videos if video.times]
        assert starts[0] == pytest.approx(starts[1], abs=1e-4)
    for clip in (None, (0.3, 1.4)) if count > 1 else (None,):
        chosen = [
            choose_frames(
                video,
                clip=clip,
                min_num_frame=4,
                max_num_frame=8,
                rng=random.Random(0),
                where="",
            )
            for video in videos
        ]
        assert chosen[0] == chosen[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_frames_are_sought(tmp_path: Path, backend: VideoBackend) -> None:
    """Where decoding all before them would cost more, with open groups and closed ones."""
    wanted = [170, 399]
    for name, options in (("c", {}), ("o", {"x264-params": "open-gop=1"})):
        path = write_clip(tmp_path / f"{name}.mp4", num_frames=400, options=options)
        assert numbers(read(path, backend), wanted) == wanted


@pytest.mark.parametrize("backend", BACKENDS)
def test_uneven_frames_have_their_own_times(tmp_path: Path, backend: VideoBackend) -> None:
    video = read(write_clip(tmp_path / "a.mp4", seconds=UNEVEN), backend)
    assert video.times is not None
    assert video.times.starts == pytest.approx(UNEVEN, abs=1e-3)
    limits = {"min_num_frame": 4, "max_num_frame": 4, "rng": None, "where": ""}
    chosen = choose_frames(video, clip=(5.0, 9.0), **limits)
    assert [UNEVEN[i] for i in chosen] == [5.5, 6.5, 7.5, 8.5]
    assert numbers(video, chosen) == chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_an_edit_list_hides_is_no_frame(tmp_path: Path, backend: VideoBackend) -> None:
    source = write_clip(tmp_path / "a.mp4")
    hidden = read(shift_clip(source, tmp_path / "hidden.mp4", -0.2), backend)
    assert numbers(hidden) == list(range(5, 50))
    assert numbers(hidden, [7, 30]) == [12, 35]
    late = read(shift_clip(source, tmp_path / "late.mp4", 1.5), backend)
    assert numbers(late) == list(range(50))
    assert late.times is not None
    assert late.times.starts[0] == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_phones_video_stands_upright(
    tmp_path: Path, backend: VideoBackend, rotation: int
) -> None:
    plain = read(write_clip(tmp_path / "a.mp4"), backend).frames([9])[0]
    turned = read(write_clip(tmp_path / "b.mp4", rotation=rotation), backend).frames([9])[0]
    assert turned.size == (plain.size if rotation == 180 else plain.size[::-1])
    wanted = np.rot90(np.asarray(plain), rotation // 90).astype(int)
    assert np.abs(np.asarray(turned) - wanted).mean() < 3  # colours are interpolated after turning


def test_transport_streams_need_pyav(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts")
    assert numbers(read(path, "pyav")) == list(range(50))
    with pytest.raises(BadRecordError, match="--video_backend pyav"):
        read(path, "decord")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_file_cut_short_is_told(tmp_path: Path, backend: VideoBackend, ending: str) -> None:
    container = {"movflags": "faststart"} if ending == "mp4" else {}
    raw = write_clip(tmp_path / f"a.{ending}", container=container).read_bytes()
    path = tmp_path / f"cut.{ending}"
    for share in (0.01, 0.3, 0.55, 0.8, 0.97):
        path.write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(BadRecordError, match=r"cut\.") as caught:
            read(path, backend)
        assert caught.value.code == "BROKEN_VIDEO"


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frame_stands_in_for_a_damaged_one(tmp_path: Path, backend: VideoBackend) -> None:
    """A hundred mutated files: frames that are the ones asked for, or a bad record."""
    raw = write_clip(tmp_path / "a.mp4").read_bytes()
    draw = random.Random(backend)
    path, wanted = tmp_path / "b.mp4", [3, 11, 12, 30, 49]
    refused = []
    for _ in range(50):
        mutated = bytearray(raw)
        if draw.random() < 0.3:
            begin = draw.randrange(len(raw) - 300)
            mutated[begin : begin + 300] = bytes(300)
        for _ in range(draw.choice([1, 20])):
            mutated[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(mutated)
        try:
            video = read(path, backend)
            if video.num_frames == 50:
                found = numbers(video, wanted)
                assert all(n in (None, w) for n, w in zip(found, wanted, strict=True)), found
            else:
                video.frames(range(min(video.num_frames, 5)))
        except BadRecordError as err:
            refused.append(str(err))
    assert len(refused) > 20
    assert all(str(path) in problem for problem in refused)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_larger_than_allowed(tmp_path: Path, backend: VideoBackend) -> None:
    path = str(write_clip(tmp_path / "a.mp4"))
    video = open_video(path, where="a.jsonl:3", max_pixels=96 * 64 - 1, backend=backend)
    with pytest.raises(BadRecordError, match=r"a\.mp4 has frames of 96 x 64 pixels") as caught:
        video.frames([0])
    assert caught.value.code == "TOO_MANY_PIXELS"
    assert len(open_video(path, where="", max_pixels=96 * 64, backend=backend).frames([0])) == 1


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    odd = path.rename(tmp_path / "caf\udce9 %d ä\n.mp4")
    for backend in BACKENDS:
        assert numbers(read(odd, backend), [4]) == [4]


def test_torchcodec_gives_the_same_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    try:
        video = read(path, "torchcodec")
    except ConfigError as err:
        pytest.skip(str(err))
    assert numbers(video) == list(range(50))


def test_one_list_of_readers() -> None:
    names = set(get_args(VideoBackend))
    assert names == set(get_args(get_args(VideoReader)[0])) == set(READERS)
    with pytest.raises(ConfigError, match="--video_backend vlc: want one of decord, pyav"):
        media_config(video_backend="vlc")


def test_times_that_are_none() -> None:
    assert usable_times(np.array([]), 1.0) is None
    assert usable_times(np.array([0.0, -3e17, 1.0]), 1.0) is None
    assert usable_times(np.array([0.0, 0.0, 1.0]), 1.0) is None
    assert usable_times(np.array([5.0, 6.0, 8.0]), 8.1) == pytest.approx([0, 1, 3, 4.5])
    assert usable_times(np.array([5.0, 6.0, 7.0]), 17.0) == pytest.approx([0, 1, 2, 12])
    assert usable_times(np.array([5.0]), float("nan")) == pytest.approx([0, 0.04])


def test_a_still_of_another_kind_is_no_reader_matter(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(BadRecordError, match="it is a JPEG image") as caught:
        read(tmp_path / "a.jpg", "pyav")
    assert caught.value.code == "NOT_A_VIDEO"
