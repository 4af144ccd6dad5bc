"""COCO and RefCOCO, there and back; pickles that are no data."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.plain_pickle import read_plain_pickle
from internvl_chat.errors import ConfigError, DatasetError
from tests.unit.data.convert.common import Row, bring_in, read_rows, send_out, write_rows

IMAGES = [
    {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100, "license": 3},
    {"id": 2, "file_name": "b.jpg", "width": 100, "height": 100},
]
CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]


def annotation(number: int, image: int, category: int, bbox: list[float], **rest: Any) -> Row:
    one = {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
    return one | {"area": 1.0, "segmentation": [[0] * 8], "iscrowd": 0} | rest


INSTANCES = {
    "info": {},
    "images": IMAGES,
    "categories": CATEGORIES,
    "annotations": [
        annotation(1, 1, 17, [20, 10, 80, 40]),
        annotation(2, 1, 18, [0, 0, 200, 100]),
        annotation(3, 1, 17, [100, 50, 100, 50]),
        annotation(4, 1, 17, [0, 0, 10, 10], iscrowd=1),
        annotation(5, 9, 17, [0, 0, 10, 10]),
        annotation(6, 1, 17, [0, 0, 10]),
    ],
}


def texts(record: Row) -> list[str]:
    return [turn["value"] for turn in record["conversations"]]


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_instances(tmp_path: Path) -> None:
    source = write_json(tmp_path / "instances.json", INSTANCES)
    report = bring_in(
        source, tmp_path / "own.jsonl", "coco", question="Where is each <ref>{}</ref>?"
    )
    (got,) = read_rows(tmp_path / "own.jsonl")
    assert (got["id"], got["image"], got["width"], got["height"]) == ("1", "a.jpg", 200, 100)
    assert texts(got) == [
        "<image>\nWhere is each <ref>cat</ref>?",
        "<ref>cat</ref><box>[[100, 100, 500, 500], [500, 500, 1000, 1000]]</box>",
        "Where is each <ref>dog</ref>?",
        "<ref>dog</ref><box>[[0, 0, 1000, 1000]]</box>",
    ]
    assert report.notes.left == {
        "images.license": 1,
        "annotations.area": 6,
        "annotations.segmentation": 6,
        "boxes of crowds": 1,
    }
    assert report.notes.changes["images without boxes or captions"] == 1
    assert report.notes.left_records == {
        "an annotation of an image that is not in the file": 1,
        "an annotation with a field missing or of the wrong type": 1,
    }


def test_boxes_go_out_to_coco_and_come_back(tmp_path: Path) -> None:
    bring_in(write_json(tmp_path / "i.json", INSTANCES), tmp_path / "own.jsonl", "coco")
    report = send_out(tmp_path / "own.jsonl", tmp_path / "coco.json", "coco")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [(one["bbox"], one["category_id"]) for one in coco["annotations"]] == [
        ([20.0, 10.0, 80.0, 40.0], 1),
        ([100.0, 50.0, 100.0, 50.0], 1),
        ([0.0, 0.0, 200.0, 100.0], 2),
    ]
    assert report.notes.left == {"questions and answers": 1}
    bring_in(tmp_path / "coco.json", tmp_path / "again.jsonl", "coco")
    assert read_rows(tmp_path / "again.jsonl") == read_rows(tmp_path / "own.jsonl")


def test_captions(tmp_path: Path) -> None:
    captions = [{"id": i, "image_id": 1, "caption": f" A {i}.\n"} for i in range(2)]
    source = write_json(tmp_path / "c.json", {"images": IMAGES, "annotations": captions})
    bring_in(source, tmp_path / "own.jsonl", "coco")
    got = read_rows(tmp_path / "own.jsonl")
    assert [one["id"] for one in got] == ["1_0", "1_1"]
    assert texts(got[1]) == [
        "<image>\nProvide a one-sentence caption for the provided image.",
        "A 1.",
    ]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"images": [1], "annotations": []}'])
def test_what_is_no_coco(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(DatasetError, match=r"c\.json: is (empty|no COCO file)"):
        bring_in(tmp_path / "c.json", tmp_path / "own.jsonl", "coco")


LINES: list[Row] = [
    {"image": "a.jpg", "sent": "left mug", "bbox": [20.0, 10.0, 100.0, 50.0], "width": 200,
     "height": 100},
    {"image": "b.jpg", "sent": "the cat", "bbox": [0.0, 0.0, 10.0, 100.0], "width": 100,
     "height": 100, "split": "val"},
]  # fmt: skip


def test_lines_of_the_evaluation(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "refcoco_val.jsonl", [*LINES, {"image": "a.jpg"}])
    report = bring_in(source, tmp_path / "own.jsonl", "refcoco")
    got = read_rows(tmp_path / "own.jsonl")
    assert texts(got[0]) == [
        "<image>\nPlease provide the bounding box coordinate of the region this sentence "
        "describes: <ref>left mug</ref>",
        "<ref>left mug</ref><box>[[100, 100, 500, 500]]</box>",
    ]
    assert report.notes.left_records == {'no "image" and "sent"': 1}
    send_out(tmp_path / "own.jsonl", tmp_path / "back.jsonl", "refcoco")
    assert read_rows(tmp_path / "back.jsonl") == LINES


def write_release(folder: Path, protocol: int = 2) -> None:
    folder.mkdir()
    refs = [
        {
            "ref_id": 5,
            "ann_id": ann_id,
            "image_id": 1,
            "category_id": 17,
            "file_name": "a_1.jpg",
            "split": split,
            "sent_ids": [0, 1],
            "sentences": [
                {"sent_id": i, "sent": f"cat {i}", "raw": "x", "tokens": []} for i in range(2)
            ],
        }
        for ann_id, split in ((1, "train"), (2, "val"), (77, "train"))
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    write_json(folder / "instances.json", INSTANCES)


@pytest.mark.parametrize("protocol", [0, 2])
def test_the_release(tmp_path: Path, protocol: int) -> None:
    write_release(tmp_path / "refcoco", protocol)
    report = bring_in(tmp_path / "refcoco", tmp_path / "own.jsonl", "refcoco")
    got = read_rows(tmp_path / "own.jsonl")
    assert [(one["id"], one["image"]) for one in got] == [("5_0", "a.jpg"), ("5_1", "a.jpg")]
    assert texts(got[1])[1] == "<ref>cat 1</ref><box>[[100, 100, 500, 500]]</box>"
    assert report.notes.left_records["a reference to an annotation that has no box"] == 1
    bring_in(tmp_path / "refcoco", tmp_path / "val.jsonl", "refcoco", split="val")
    assert texts(read_rows(tmp_path / "val.jsonl")[0])[1] == (
        "<ref>cat 0</ref><box>[[0, 0, 1000, 1000]]</box>"
    )
    with pytest.raises(ConfigError, match="no split 'test' but train, val"):
        bring_in(tmp_path / "refcoco", tmp_path / "t.jsonl", "refcoco", split="test")
    (tmp_path / "refcoco" / "refs(google).p").write_bytes(b"")
    with pytest.raises(ConfigError, match="several sets of references"):
        bring_in(tmp_path / "refcoco", tmp_path / "t.jsonl", "refcoco")
    with pytest.raises(ConfigError, match=r"no refs\(…\)\.p in it"):
        bring_in(tmp_path, tmp_path / "t.jsonl", "refcoco")


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "evil.p").write_bytes(pickle.dumps([_Runs(tmp_path / "ran")]))
    with pytest.raises(DatasetError, match=r"it names posix\.mkdir"):
        read_plain_pickle(tmp_path / "evil.p")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"\x80", b"garbage", b"\x80\x04\x95" + b"\xff" * 8, b"(" * 10_000, b"}.", b"X"]
)
def test_damaged_pickles(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.p").write_bytes(raw)
    if raw == b"}.":
        assert read_plain_pickle(tmp_path / "x.p") == {}
        return
    with pytest.raises(DatasetError, match="is no pickle of plain values"):
        read_plain_pickle(tmp_path / "x.p")
