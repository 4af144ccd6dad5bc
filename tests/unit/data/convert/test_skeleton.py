"""From a folder of images to records."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.data.convert.skeleton import SkeletonReport, make_skeleton
from internvl_chat.data.meta import load_meta
from internvl_chat.data.schema import BadRecordError, parse_record
from internvl_chat.errors import ConfigError, DatasetError
from tests.unit.data.convert.common import png, read_rows


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(folder / "b.PNG")
    Image.new("RGB", (8, 4)).save(folder / "sub" / "ä,1.jpg")
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def init(folder: Path, table: Path | None = None) -> SkeletonReport:
    return make_skeleton(folder, table=table, question="What is it?")


def fill(table: Path, *answers: str) -> None:
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    for row, answer in zip(rows[1:], answers, strict=False):
        row[2] = answer
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_a_skeleton_is_filled_in(photos: Path) -> None:
    report = init(photos)
    assert (report.num_images, report.num_records, report.is_filled) == (2, 2, False)
    assert "fill in questions.csv" in report.as_text()
    first, second = read_rows(photos / "annotation.jsonl")
    assert (first["image"], first["width"], first["height"]) == ("b.PNG", 20, 10)
    assert second["image"] == "sub/ä,1.jpg"
    with pytest.raises(BadRecordError, match="the answer in turn 1 is empty"):
        parse_record((photos / "annotation.jsonl").read_bytes().splitlines()[0], where="x")
    (spec,) = load_meta(photos / "meta.json")
    assert (spec.name, spec.length, spec.root) == ("photos", 2, f"{photos}/")

    fill(photos / "questions.csv", "A cat.")
    report = init(photos, photos / "questions.csv")
    (got,) = read_rows(photos / "annotation.jsonl")
    assert [turn["value"] for turn in got["conversations"]] == ["<image>\nWhat is it?", "A cat."]
    assert (got["width"], got["height"]) == (20, 10)
    assert load_meta(photos / "meta.json")[0].length == 1
    assert report.notes.left_records == {"no answer": 1}
    assert report.unanswered == ["sub/ä,1.jpg"]
    assert "images without a question: 1" in report.as_text()
    assert not list(photos.glob(".*former"))


def test_what_the_user_wrote_is_kept(photos: Path) -> None:
    init(photos)
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        init(photos)
    before = {path: path.read_bytes() for path in photos.iterdir() if path.is_file()}
    with pytest.raises(DatasetError, match="no record could be taken"):
        init(photos, photos / "questions.csv")  # no answer in it
    assert {path: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before

    fill(photos / "questions.csv", "A cat.")
    text = (photos / "annotation.jsonl").read_text("utf-8")
    touched = text.replace('"value":""', '"value":"mine"', 1)
    assert touched != text
    (photos / "annotation.jsonl").write_text(touched, "utf-8")
    with pytest.raises(ConfigError, match=r"annotation\.jsonl: exists"):
        init(photos, photos / "questions.csv")
    assert (photos / "annotation.jsonl").read_text("utf-8") == touched
    (photos / "annotation.jsonl").write_text(text, "utf-8")
    (photos / "meta.json").write_text("{")
    with pytest.raises(ConfigError, match=r"meta\.json: exists"):
        init(photos, photos / "questions.csv")
    assert (photos / "meta.json").read_text() == "{"


def test_no_folder_no_image_no_picture_file(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        init(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no image"):
        init(tmp_path / "empty")
    (photos / "c.jpg").write_text("<html>")
    with open(os.fsencode(photos) + b"/caf\xe9.png", "wb") as file:
        file.write(png())
    report = init(photos)
    assert report.unreadable == ["c.jpg", "caf\\xe9.png"]
    assert report.num_records == 2
