"""What tells one set of data from another: content, not places."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.data.identity import data_identity
from tests.support.training import write_dataset

PLACES = {"root", "annotation"}


def written(folder: Path) -> Path:
    return write_dataset(folder, ("text", "image", "two", "rounds"))


def entry(meta: Path) -> dict[str, Any]:
    """The only entry, without where its files lie."""
    identity = data_identity(meta)
    assert identity is not None
    (found,) = identity
    return {key: value for key, value in found.items() if key not in PLACES}


def moved(meta: Path, folder: Path) -> Path:
    """The same data in another folder, named in a meta of its own."""
    shutil.copytree(meta.parent, folder)
    path = folder / meta.name
    path.write_text(path.read_text().replace(str(meta.parent), str(folder)))
    return path


def test_a_copy_is_the_same(tmp_path: Path) -> None:
    meta = written(tmp_path / "a")
    copy = moved(meta, tmp_path / "b")
    assert entry(copy) == entry(meta)
    assert entry(meta)["records"] == 4
    assert data_identity(copy) != data_identity(meta), "places are told"


def change_meta(**values: Any) -> Callable[[Path], object]:
    def change(meta: Path) -> None:
        table = json.loads(meta.read_text())
        table["shapes"].update(values)
        meta.write_text(json.dumps(table))

    return change


def edit_record(meta: Path) -> None:
    annotation = meta.parent / "shapes/records.jsonl"
    annotation.write_text(annotation.read_text().replace("What colour?", "Which colour"))


def repaint(meta: Path) -> None:
    image = meta.parent / "shapes/1-0.png"
    Image.new("RGB", Image.open(image).size, "white").save(image)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (change_meta(repeat_time=2), "repeat_time"),
        (change_meta(max_samples=2), "max_samples"),
        (change_meta(data_augment=True), "data_augment"),
        (change_meta(box_format="0-1"), None),
        (change_meta(length=9), ""),  # a promise
        (edit_record, "records_sha256"),
        (repaint, "files"),
    ],
)
def test_what_counts(tmp_path: Path, change: Callable[[Path], object], key: str | None) -> None:
    meta = written(tmp_path / "a")
    before = entry(meta)
    change(meta)
    if key is None:
        assert data_identity(meta) is None, "no such format: reading the meta says so"
        return
    after = entry(meta)
    assert [name for name in before if before[name] != after[name]] == ([key] if key else [])


def test_a_meta_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    assert data_identity(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text("{")
    assert data_identity(tmp_path / "bad.json") is None


def test_one_letter_of_a_large_annotation_file_counts(tmp_path: Path) -> None:
    meta = written(tmp_path / "a")
    annotation = meta.parent / "shapes/records.jsonl"
    padding = json.dumps({"pad": "x" * 2**20}).encode() + b"\n"
    with annotation.open("ab") as file:
        for _ in range(18):
            file.write(padding)
    before = entry(meta)
    with annotation.open("r+b") as file:
        file.seek(9 * 2**20 + 2**17)
        file.write(b"y")
    after = entry(meta)
    assert [name for name in before if before[name] != after[name]] == ["records_sha256"]


def test_an_image_of_any_record_of_a_small_dataset_counts(tmp_path: Path) -> None:
    meta = write_dataset(tmp_path / "a", ("image",) * 20)
    before = entry(meta)
    for number in (1, 12, 18):
        image = meta.parent / f"shapes/{number}-0.png"
        Image.new("RGB", Image.open(image).size, "white").save(image)
        after = entry(meta)
        assert [name for name in before if before[name] != after[name]] == ["files"]
        before = after
