"""Files that are taken, and what is said about the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.web.conversation import MediaItem, QuestionError
from internvl_chat.web.limits import QuestionLimits, check_question, look_at_uploads, whole
from tests.support.uploads import write_bomb, write_sound

GREYS = Path(__file__).parents[1] / "data/greys.mp4"


def look(folder: Path, *names: str, limits: QuestionLimits | None = None) -> tuple[MediaItem, ...]:
    paths = [str(folder / name) for name in names]
    return look_at_uploads(paths, root=folder, num_frames=4, limits=limits or QuestionLimits())


def test_images_and_videos_are_told_apart(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "still.gif")
    frames = [Image.new("L", (9, 9), level) for level in (0, 99, 200)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    shutil.copy(GREYS, tmp_path / "film.MP4")
    names = ("a.jpg", "still.gif", "moves.gif", "film.MP4")
    assert [m.num_frames for m in look(tmp_path, *names)] == [None, None, 4, 4]
    assert look(tmp_path) == ()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("text.jpg", "text.jpg is no image that can be read"),
        ("cut.jpg", "cut.jpg is cut off"),
        ("bomb.png", "bomb.png has too many pixels: at most 50 million"),
        ("notes.txt", "notes.txt is no image"),
        ("text.mp4", "text.mp4 is no video that can be decoded, or has no frames"),
        ("sound.mp4", "sound.mp4 is no video that can be decoded, or has no frames"),
        ("gone.png", "gone.png is no longer on the server"),
    ],
)
def test_a_bad_file_is_one_sentence_without_a_path(tmp_path: Path, name: str, problem: str) -> None:
    for text in ("text.jpg", "notes.txt", "text.mp4"):
        (tmp_path / text).write_text("no image at all")
    Image.effect_noise((200, 200), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    write_bomb(tmp_path / "bomb.png")
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(QuestionError) as caught:
        look(tmp_path, name)
    assert str(caught.value).startswith(problem)
    assert str(tmp_path) not in str(caught.value)


def test_bounds(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    shutil.copy(GREYS, tmp_path / "film.mp4")
    with pytest.raises(QuestionError, match="too many pixels"):
        look(tmp_path, "a.png", limits=QuestionLimits(max_upload_pixels=1199))
    assert look(tmp_path, "a.png", limits=QuestionLimits(max_upload_pixels=1200))
    with pytest.raises(QuestionError, match=r"film\.mp4 has frames of \d+ x \d+ pixels"):
        look(tmp_path, "film.mp4", limits=QuestionLimits(max_frame_pixels=10))
    with pytest.raises(QuestionError, match="3 files at once, at most 2"):
        look(tmp_path, "a.png", "a.png", "a.png", limits=QuestionLimits(max_files=2))
    with pytest.raises(QuestionError, match="33 frames of a video"):
        look_at_uploads([], root=tmp_path, num_frames=33, limits=QuestionLimits())
    check_question("abc", QuestionLimits(max_question_chars=3))
    with pytest.raises(QuestionError, match="4 characters; at most 3"):
        check_question("abcd", QuestionLimits(max_question_chars=3))


@pytest.mark.parametrize("path", ["/etc/passwd", "{root}/../a.png", "{root}/link.png"])
def test_only_uploads_are_opened(tmp_path: Path, path: str) -> None:
    root = tmp_path / "uploads"
    root.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (root / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(QuestionError, match="was not uploaded here"):
        look_at_uploads([path.format(root=root)], root=root, num_frames=4, limits=QuestionLimits())


@pytest.mark.parametrize("sent", [float("nan"), float("inf"), None, "8", [8], {}])
def test_numbers_that_are_none(sent: object) -> None:
    with pytest.raises(QuestionError, match="want a whole number"):
        whole(sent, "frames")
    assert whole(8.0, "frames") == 8
