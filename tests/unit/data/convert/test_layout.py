"""The guide's tree against the disk, and what of it is converted."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from internvl_chat.data.convert import layout_images
from internvl_chat.data.convert.layout import check_layout
from internvl_chat.data.convert.layout_images import convert_layout, convert_ocr_vqa
from internvl_chat.data.convert.playground import DATASETS, FOLDERS
from internvl_chat.data.meta import load_meta
from internvl_chat.errors import DatasetError
from tests.support.training import ROOT
from tests.unit.data.convert.common import png, write_rows

TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]


@pytest.fixture
def playground(tmp_path: Path) -> Path:
    """A complete tree with one record a dataset."""
    root = tmp_path / "playground"
    images = {
        "sharegpt4v_instruct_gpt4-vision_cap100k": "sam/images/a.jpg",
        "llava_instruct_150k_zh": "train2017/a.jpg",
        "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k": "ocr_vqa/images/a.jpg",
        "dvqa_train_200k": "images/a.png",
        "synthdog_en": "images/00000001.jpg",
    }
    for one in FOLDERS:
        for folder in one.folders:
            (root / "data" / folder).mkdir(parents=True)
    for dataset in DATASETS:
        path = images.get(dataset.name, "images/a.png")
        if dataset.name in ("chartqa_train_18k", "docvqa_train_10k"):
            path = "train/png/a.png"
        file = root / "data" / dataset.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
        record = {"image": path, "conversations": TURNS}
        write_rows(root / "opensource" / f"{dataset.name}.jsonl", [record, record])
    return root


def test_the_table_is_the_shipped_meta() -> None:
    specs = json.loads((ROOT / "shell/data/internvl_1_2_finetune.json").read_text())
    assert {
        name: (entry["root"].removeprefix("playground/data/").rstrip("/"), entry["length"])
        for name, entry in specs.items()
    } == {one.name: (one.root, one.length) for one in DATASETS}
    assert callable(load_meta)


def test_the_table_is_the_readme_of_playground() -> None:
    readme = (ROOT / "playground/README.md").read_text("utf-8")
    for one in FOLDERS:
        for download in one.downloads:
            known = "naver-clova-ix" in download.url or download.url in readme
            assert known, download.url
        for folder in one.folders:
            assert re.search(rf"── {re.escape(Path(folder).name)}\n", readme), folder


def test_complete(playground: Path) -> None:
    report = check_layout(playground)
    assert report.is_complete
    assert not report.downloads
    assert not report.moves
    assert not report.conversions
    assert [(one.records, one.num_images, one.num_images_found) for one in report.datasets] == [
        (2, 1, 1)
    ] * 9
    assert "present, 2 records (the guide's has 102025), 1 of 1 images" in report.as_text()
    assert report.as_text().endswith("\ncomplete")


def test_missing_images_folders_and_annotations(playground: Path) -> None:
    (playground / "data/coco/train2017/a.jpg").unlink()
    (playground / "data/docvqa/test").rmdir()
    report = check_layout(playground)
    assert not report.is_complete
    assert list(report.downloads) == ["COCO"]
    zh = next(one for one in report.datasets if one.name == "llava_instruct_150k_zh")
    assert zh.first_missing == str(playground / "data/coco/train2017/a.jpg")
    text = report.as_text()
    assert "coco/train2017: present, 0 of 1 images" in text
    assert "docvqa/test: missing, but no annotation names it" in text
    assert f"wget -c -P {playground}/downloads/coco 'http://images.cocodataset.org" in text
    (playground / "opensource/geoqa+.jsonl").unlink()
    report = check_layout(playground)
    assert list(report.downloads) == ["annotations", "COCO", "DocVQA"]
    text = report.as_text()
    assert "geoqa+: missing" in text
    assert (
        f"hf download OpenGVLab/InternVL playground.zip --local-dir {playground}/downloads" in text
    )
    assert (
        "huggingface-cli download --resume-download --local-dir-use-symlinks False "
        "OpenGVLab/InternVL playground.zip"
    ) in text
    assert text.endswith("something is missing")


def test_commands_of_the_hub_are_its_tools(playground: Path) -> None:
    hf = ROOT / ".venv/bin/hf"
    if not hf.exists():
        pytest.skip("no hf beside this Python")
    known = subprocess.run([hf, "download", "--help"], capture_output=True, text=True, check=True)
    options = {
        word
        for one in FOLDERS
        for download in one.downloads
        for line in download.commands("x")
        if line.startswith("hf ")
        for word in line.split()
        if word.startswith("--")
    }
    assert options
    assert all(option in known.stdout for option in options)


def test_what_lies_elsewhere_is_to_be_moved(playground: Path) -> None:
    data = playground / "data"
    (data / "coco/train2017").rename(data / "train2017")
    (data / "chartqa/test").rmdir()
    (data / "chartqa/ChartQA Dataset/test").mkdir(parents=True)
    (data / "gqa/images/images").mkdir()
    (data / "llava/llava_pretrain/images").rename(data / "llava/llava_pretrain/00000")
    (playground / "opensource/geoqa+.jsonl").rename(playground / "geoqa+.jsonl")
    assert check_layout(playground).moves == [
        (f"{playground}/geoqa+.jsonl", f"{playground}/opensource/geoqa+.jsonl"),
        (f"{data}/chartqa/ChartQA Dataset/test", f"{data}/chartqa/test"),
        (f"{data}/train2017", f"{data}/coco/train2017"),
        (f"{data}/gqa/images/images/*", f"{data}/gqa/images"),
        (f"{data}/llava/llava_pretrain/0*", f"{data}/llava/llava_pretrain/images"),
    ]
    assert f"mv '{data}/chartqa/ChartQA Dataset/test' {data}/chartqa/test" in (
        check_layout(playground).as_text()
    )


def test_ocr_vqa_becomes_jpg(playground: Path) -> None:
    folder = playground / "data/ocr_vqa/images"
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 4), "blue").save(jpeg, "JPEG")
    (folder / "a.jpg").rename(folder / "a.png")
    Image.new("P", (8, 4)).save(folder / "b.gif")
    (folder / "c.jpeg").write_bytes(jpeg.getvalue())
    (folder / "d.png").write_bytes(b"<html>")
    (folder / "e.jpg").write_bytes(b"mine")
    (folder / "e.png").write_bytes(png())
    (folder / ".x.99999999.partial.jpg").write_bytes(b"half")
    (folder / f".y.{os.getpid()}.partial.jpg").write_bytes(b"being written")
    before = check_layout(playground)
    assert before.conversions == ["OCR-VQA: 1 images are not .jpg yet"]
    assert not before.downloads  # nothing to download for what only has another ending
    (report,) = convert_layout(playground)
    assert (report.num_written, report.num_there) == (3, 1)
    assert len(report.unreadable) == 1
    assert "d.png" in report.unreadable[0]
    with Image.open(folder / "a.jpg") as image:
        assert (image.format, image.size, image.getpixel((0, 0))) == ("JPEG", (8, 4), (254, 0, 0))
    assert (folder / "c.jpg").read_bytes() == jpeg.getvalue()
    assert (folder / "a.png").read_bytes() == png()
    assert (folder / "e.jpg").read_bytes() == b"mine"
    assert [path.name for path in folder.glob(".*")] == [f".y.{os.getpid()}.partial.jpg"]
    assert check_layout(playground).is_complete


def test_converting_goes_on_after_a_kill(playground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = playground / "data/ocr_vqa/images"
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png())
    real, written = layout_images.write_jpeg, []

    def stops(raw: bytes, target: Path, name: str) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        real(raw, target, name)
        written.append(target)

    monkeypatch.setattr(layout_images, "write_jpeg", stops)
    with pytest.raises(KeyboardInterrupt):
        convert_ocr_vqa(folder)
    monkeypatch.setattr(layout_images, "write_jpeg", real)
    report = convert_ocr_vqa(folder)
    assert (report.num_written, report.num_there) == (2, 2)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("ground_truth", pa.string())])


def jpeg_of(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), (number, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shards(folder: Path, numbers: tuple[int, ...], rows: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in numbers:
        content = [
            {
                "image": {"bytes": jpeg_of(shard * rows + i), "path": None},
                "ground_truth": json.dumps(
                    {"gt_parse": {"text_sequence": f"text  {shard * rows + i}"}}
                ),
            }
            for i in range(rows)
        ]
        path = folder / f"train-{shard:05d}-of-00084-0123.parquet"
        pq.write_table(pa.Table.from_pylist(content, schema=SCHEMA), path)


def annotate(playground: Path, numbers: Iterator[int] | range, shift: int = 0) -> None:
    rows: list[Any] = [
        {
            "id": n,
            "image": f"images/{n:08d}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nRead."},
                {"from": "gpt", "value": f"text {n + shift}"},
            ],
        }
        for n in numbers
    ]
    write_rows(playground / "opensource/synthdog_en.jsonl", rows)


def test_synthdog_rows_become_numbered_images(playground: Path) -> None:
    folder = playground / "data/synthdog-en"
    (folder / "images/00000001.jpg").unlink()
    write_shards(folder / "data", (0, 1, 2, 3, 4, 7))
    annotate(playground, range(0, 50, 2))
    before = check_layout(playground)
    assert before.conversions == ["SynthDoG-EN: Parquet files are there, images are missing"]
    report = convert_layout(playground)[0]
    assert report.num_written == 50
    assert "left aside, the guide uses 00000-00004" in report.asides[0]
    assert (folder / "images/00000042.jpg").read_bytes() == jpeg_of(42)
    assert check_layout(playground).is_complete
    (folder / "images/00000013.jpg").unlink()
    report = convert_layout(playground)[0]
    assert (report.num_written, report.num_there) == (1, 49)


def test_shards_that_are_not_the_guides(playground: Path) -> None:
    folder = playground / "data/synthdog-en"
    write_shards(folder / "data", (0, 2))
    with pytest.raises(DatasetError, match="shard 00001 is missing"):
        convert_layout(playground)
    write_shards(folder / "data", (0, 1, 2), rows=30)
    annotate(playground, range(90), shift=1)
    with pytest.raises(DatasetError, match=r"row 19: its text is not that of images/00000019\.jpg"):
        convert_layout(playground)


def test_a_folder_without_anything(tmp_path: Path) -> None:
    report = check_layout(tmp_path)
    assert not report.is_complete
    assert len(report.downloads) == 15
    assert report.as_dict()["complete"] is False
    assert convert_layout(tmp_path) == []
