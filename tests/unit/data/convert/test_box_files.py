"""Whole files of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.data.convert.box_files import convert_file, convert_meta
from internvl_chat.data.meta import load_meta
from internvl_chat.errors import ConfigError


def record(answer: str, **rest: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}]
    return {"id": 1, **rest, "conversations": turns}


def answers(path: Path) -> list[str]:
    lines = path.read_text("utf-8").split("\n")[:-1]
    return [json.loads(line)["conversations"][1]["value"] for line in lines]


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
    return path


def test_unit_to_1000_and_back(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        record("a cat [0.1, 0.25, 0.5, 1.0]"),
        record("see [1, 0, 1, 1]"),
        record("no box"),
        record("[0.5, 0.2, 0.3, 0.4]"),
    )
    there = convert_file(source, tmp_path / "b.jsonl", ("unit", "1000"))
    assert answers(tmp_path / "b.jsonl") == [
        "a cat <box>[[100, 250, 500, 1000]]</box>",
        "see [1, 0, 1, 1]",
        "no box",
        "<box>[[500, 200, 300, 400]]</box>",
    ]
    assert (there.num_records, there.num_changed, there.num_converted) == (4, 2, 2)
    assert there.left_places == [f"{source}:2: [1, 0, 1, 1] has no decimal point"]
    assert there.suspicious == [
        f"{source}:4: box [0.5, 0.2, 0.3, 0.4] becomes <box>[[500, 200, 300, 400]]</box>: "
        "want x1 < x2 and y1 < y2"
    ]
    assert "4 records, 2 changed, 2 boxes converted" in there.as_text()
    convert_file(tmp_path / "b.jsonl", tmp_path / "c.jsonl", ("1000", "unit"))
    assert answers(tmp_path / "c.jsonl")[0] == "a cat [0.100, 0.250, 0.500, 1.000]"
    convert_file(tmp_path / "c.jsonl", tmp_path / "d.jsonl", ("unit", "1000"))
    assert (tmp_path / "d.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_unchanged_lines_stay_to_the_byte(tmp_path: Path) -> None:
    odd = (
        b'{"conversations":   [{"from":"human","value":"[1, 2]"}], "n": 123456789012345678901234}\n'
        b'not json\n[1]\n{"bad": "\xff"}\n{"x": NaN}\n'
    )
    (tmp_path / "a.jsonl").write_bytes(odd)
    report = convert_file(tmp_path / "a.jsonl", tmp_path / "b.jsonl", ("unit", "1000"))
    assert (tmp_path / "b.jsonl").read_bytes() == odd
    assert [told.split(": ")[0].rpartition(":")[2] for told in report.left_places] == list("2345")
    assert "is not UTF-8" in report.left_places[2]


def test_a_changed_record_keeps_the_rest(tmp_path: Path) -> None:
    big = 123456789012345678901234
    source = write(tmp_path / "a.jsonl", record("[0.1, 0.2, 0.3, 0.4]", n=big, s="\ud800", ü="ü"))
    convert_file(source, tmp_path / "b.jsonl", ("unit", "1000"))
    got = json.loads((tmp_path / "b.jsonl").read_text("utf-8"))
    assert (got["n"], got["s"], got["ü"]) == (big, "\ud800", "ü")


def test_pixels_by_stated_size_then_by_header(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    turned = Image.new("RGB", (200, 100))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    source = write(
        tmp_path / "a.jsonl",
        record("[64, 48, 320, 240]", image="gone.png", width=640, height=480),
        record("[20, 10, 100, 50]", image="a.png"),
        record("[10, 20, 50, 100]", image="turned.jpg"),
        record("[1, 2, 3, 4]", image="gone.png"),
        record("[1, 2, 3, 4]", image=["a.png", "turned.jpg"]),
        record("[1, 2, 3, 4]"),
    )
    report = convert_file(source, tmp_path / "b.jsonl", ("pixel", "1000"), root=tmp_path)
    assert answers(tmp_path / "b.jsonl") == [
        "<box>[[100, 100, 500, 500]]</box>",
        "<box>[[100, 100, 500, 500]]</box>",
        "<box>[[100, 100, 500, 500]]</box>",
        "[1, 2, 3, 4]",
        "[1, 2, 3, 4]",
        "[1, 2, 3, 4]",
    ]
    assert [told.rpartition("; ")[2] for told in report.left_places[::2]] == [
        "its image cannot be opened",
        "its image cannot be opened",
    ]
    assert "2 images of different sizes" in report.left_places[1]
    without = convert_file(source, tmp_path / "c.jsonl", ("pixel", "1000"))
    assert without.num_changed == 1
    assert "give --root" in without.left_places[0]


def test_arrays_stay_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([record("[0.1, 0.2, 0.3, 0.4]"), record("-")]))
    convert_file(tmp_path / "a.json", tmp_path / "b.json", ("unit", "1000"))
    got = json.loads((tmp_path / "b.json").read_text())
    assert [one["conversations"][1]["value"] for one in got] == [
        "<box>[[100, 200, 300, 400]]</box>",
        "-",
    ]


def test_all_datasets_of_a_meta(tmp_path: Path) -> None:
    entry = {"data_augment": True, "repeat_time": 0.5, "length": 1, "box_format": "unit_to_1000"}
    metas = {}
    for name in ("a", "b/c"):
        annotation = write(tmp_path / f"{name[0]}.jsonl", record("[0.1, 0.2, 0.3, 0.4]"))
        metas[name] = {"root": str(tmp_path), "annotation": str(annotation), **entry}
    (tmp_path / "meta.json").write_text(json.dumps(metas))
    reports = convert_meta(tmp_path / "meta.json", tmp_path / "plus", ("unit", "1000"))
    assert [report.num_converted for report in reports] == [1, 1]
    first, second = load_meta(tmp_path / "plus" / "meta.json")
    assert (first.box_format, first.repeat_time, first.data_augment) == ("keep", 0.5, True)
    assert (second.name, second.annotation) == ("b/c", str(tmp_path / "plus" / "b_c.jsonl"))
    assert answers(tmp_path / "plus" / "a.jsonl") == ["<box>[[100, 200, 300, 400]]</box>"]
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        convert_meta(tmp_path / "meta.json", tmp_path / "plus", ("unit", "1000"))


def test_refusals(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", record("-"))
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        convert_file(source, source, ("unit", "1000"))
    with pytest.raises(ConfigError, match="both are unit"):
        convert_file(source, tmp_path / "b.jsonl", ("unit", "unit"))
    with pytest.raises(ConfigError, match="no such file"):
        convert_file(tmp_path / "no.jsonl", tmp_path / "b.jsonl", ("unit", "1000"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
