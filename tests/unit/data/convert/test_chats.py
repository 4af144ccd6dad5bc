"""LLaVA, ShareGPT, OpenAI and Alpaca, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.data.convert.importing import Format
from internvl_chat.data.meta import load_meta
from internvl_chat.errors import ConfigError, DatasetError
from tests.unit.data.convert.common import (
    Row,
    bring_in,
    png,
    png_url,
    read_rows,
    send_out,
    there_and_back,
    write_rows,
)


def says(*texts: str) -> list[Row]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def messages(*contents: Any) -> list[Row]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def image_part(url: str) -> Row:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> Row:
    return {"type": "text", "text": text}


LLAVA: list[Row] = [
    {"id": 7, "image": "a.png", "conversations": says("<image>\nWhat?", "A cat."), "model": "x"},
    {"id": "b", "image": ["a.png", "b/ü.png"], "conversations": says("<image> <image>?", "No")},
    {"video": "v.mp4", "clip": [0.5, 2.0], "conversations": says("<video>\nWhat?", "A cat.")},
    {"system": "Be brief.", "conversations": says("Hi", "Ho", "And?", "No.")},
    {"image": "a.png", "width": 8, "height": 4, "conversations": says("no tag", "right")},
]
SHAREGPT: list[Row] = [
    {"id": 7, "conversations": says("<image>What?", "A cat."), "images": ["a.png"]},
    {"conversations": says("<image><image>?", "No"), "images": ["a.png", "b.png"], "source": "x"},
    {"conversations": says("<video>What?", "A cat."), "videos": ["v.mp4"]},
    {"conversations": says("Hi", "Ho"), "system": "Be brief.", "kto_tag": True},
    {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather"}'},
            {"from": "observation", "value": '{"sun": 1}'},
            {"from": "gpt", "value": "Sunny."},
        ],
        "tools": '[{"name": "weather"}]',
    },
]
OPENAI: list[Row] = [
    {"messages": messages("Hi", "Ho")},
    {"id": "a", "messages": [{"role": "system", "content": "S"}, *messages("Hi", "Ho")]},
    {"messages": messages([image_part(png_url()), text_part("What?")], "red", "Sure?", "Yes")},
    {"messages": messages([text_part("What?"), image_part(png_url("blue"))], "blue")},
    {"messages": messages([image_part(png_url()), image_part(png_url("blue"))], "two")},
    {"messages": messages([text_part(""), image_part(png_url()), text_part("\n?\n")], "odd")},
    {"messages": messages([image_part(png_url())], "one"), "topic": "x"},
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "w", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "sun"},
            {"role": "assistant", "content": "Sunny."},
        ],
        "tools": [{"type": "function"}],
    },
]
ALPACA: list[Row] = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Hi", "input": "", "output": "Ho", "system": "S"},
    {"instruction": "", "input": "only", "output": "input"},
    {"instruction": "3?", "input": "", "output": "c", "history": [["1?", "a"], ["2?", "b"]]},
    {"id": 1, "instruction": "<image>What?", "input": "", "output": "c", "images": ["a.png"]},
]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize(
    ("form", "rows"),
    [("llava", LLAVA), ("sharegpt", SHAREGPT), ("openai", OPENAI), ("alpaca", ALPACA)],
)
def test_there_and_back_is_the_identity(
    tmp_path: Path, form: Format, rows: list[Row], ending: str
) -> None:
    got, there, back = there_and_back(tmp_path, rows, form, embed=form == "openai", ending=ending)
    assert got == rows
    assert not there.notes.left
    assert not there.notes.left_records
    assert set(back.notes.left) <= {"width", "height"}
    entry = load_meta(tmp_path / "own" / "own.meta.json")[0]
    assert (entry.name, entry.length) == ("own", len(rows))


texts = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=20)
answers = texts.filter(lambda text: bool(text.strip()))


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(
        st.tuples(st.lists(st.none() | texts, min_size=1, max_size=5), answers),
        min_size=1,
        max_size=3,
    )
)
def test_any_parts_come_back(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[list[str | None], str]]
) -> None:
    turns: list[Any] = []
    for pieces, answer in contents:
        parts: list[Row] = []
        for piece in pieces:
            if piece is None:
                parts.append(image_part(png_url()))
            elif not parts or parts[-1]["type"] != "text":  # neighbours become one text
                parts.append(text_part(piece))
        only_text = len(parts) == 1 and parts[0]["type"] == "text"
        turns += [parts[0]["text"] if only_text else parts, answer]
    rows = [{"messages": messages(*turns)}]
    folder = tmp_path_factory.mktemp("openai")
    assert there_and_back(folder, rows, "openai", embed=True)[0] == rows


def test_data_urls_become_files(tmp_path: Path) -> None:
    rows = [{"messages": messages([image_part(png_url()), text_part("What?")], "red")}] * 2
    report = bring_in(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "o" / "x.jsonl", "openai")
    (first, second) = read_rows(tmp_path / "o" / "x.jsonl")
    assert first == second
    assert first["image"].startswith("x_images/")
    assert first["image"].endswith(".png")
    assert (first["width"], first["height"]) == (8, 4)
    assert first["conversations"][0]["value"] == "<image>\nWhat?"
    assert (tmp_path / "o" / first["image"]).is_file()
    assert report.num_images_written == 1  # the same bytes


def test_named_and_written_images_get_a_common_root(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(b"")
    rows = [{"messages": messages([image_part("a.png"), image_part(png_url())], "two")}]
    report = bring_in(
        write_rows(tmp_path / "in.jsonl", rows),
        tmp_path / "out" / "x.jsonl",
        "openai",
        root=tmp_path / "pics",
    )
    images = read_rows(tmp_path / "out" / "x.jsonl")[0]["image"]
    assert all((Path(report.root) / path).is_file() for path in images)
    assert images[0] == "pics/a.png"
    assert report.notes.changes["images in two folders: the root is their common folder"] == 1


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("openai", {"messages": messages([image_part("http://x/a.png")], "a")}, "on the net"),
        ("openai", {"messages": messages([{"type": "input_audio"}], "a")}, "'input_audio'"),
        ("openai", {"messages": messages([image_part("data:,x")], "a")}, "no image"),
        ("openai", {"messages": messages([image_part("data:;base64,a")], "a")}, "damaged"),
        ("openai", {"messages": messages([image_part("data:;base64,$$$$")], "a")}, "damaged"),
        ("openai", {"messages": messages([image_part("data:;base64,AAAA")], "a")}, "no image"),
        ("openai", {"messages": messages("Hi", [image_part("a.png")])}, "TAG_IN_ANSWER"),
        ("openai", {"messages": messages("Hi")}, "TURNS"),
        ("sharegpt", {"conversations": says("Hi", "Ho"), "audios": ["a.wav"]}, "sound"),
        ("sharegpt", {"conversations": says("<video>", "Ho"), "videos": ["a", "b"]}, "several"),
        ("sharegpt", {"conversations": says("<image>", "Ho")}, "TAG_MISMATCH"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "unknown role"),
        ("sharegpt", {"conversations": says("Hi", "")}, "EMPTY_ANSWER"),
        ("sharegpt", {"conversations": says("Hi", "a<|im_end|>b")}, "CONTROL_TOKEN"),
        ("alpaca", {"instruction": "x"}, '"output" is missing'),
        ("alpaca", {"instruction": "x", "output": "y", "history": [["a"]]}, "history"),
        ("llava", {"image": 5, "conversations": says("Hi", "Ho")}, "an image that is a int"),
        ("llava", [1], "is no object"),
    ],
)
def test_what_cannot_be_taken_is_left_in_a_file_with_the_reason(
    tmp_path: Path, form: Format, row: Any, reason: str
) -> None:
    good: Row = {
        "openai": {"messages": messages("Hi", "Ho")},
        "sharegpt": {"conversations": says("Hi", "Ho")},
        "alpaca": ALPACA[0],
        "llava": {"conversations": says("Hi", "Ho")},
    }[form]
    source = write_rows(tmp_path / "in.jsonl", [good, row, good])
    report = bring_in(source, tmp_path / "x.jsonl", form)
    assert (report.num_read, report.num_records) == (3, 2)
    assert list(report.notes.left_records.values()) == [1]
    assert reason in next(iter(report.notes.left_records))
    assert report.notes.places[0].startswith(f"{source}:2: ")
    (left,) = read_rows(tmp_path / "x.left.jsonl")
    assert left["where"] == f"{source}:2"
    assert left["record"] == (row if isinstance(row, dict) else None)
    assert not list(tmp_path.glob(".*"))


def test_answers_not_to_be_learned_are_left_unless_asked_for(tmp_path: Path) -> None:
    masked = messages("Hi", "Ho", "And?", "Yes")
    masked[1]["weight"] = 0
    skipped = says("Hi", "Ho")
    skipped[1]["loss"] = False  # type: ignore[assignment]
    source = write_rows(
        tmp_path / "in.jsonl", [{"messages": masked}, {"messages": messages("a", "b")}]
    )
    report = bring_in(source, tmp_path / "a.jsonl", "openai")
    assert report.num_records == 1
    assert "--train-masked" in next(iter(report.notes.left_records))
    report = bring_in(source, tmp_path / "b.jsonl", "openai", train_masked=True)
    assert report.num_records == 2
    assert "answers marked as not to be learned, learned all the same" in report.notes.changes
    asked_only = says("Hi", "Ho")
    asked_only[0]["loss"] = False  # type: ignore[assignment]
    rows = [{"conversations": asked_only}, {"conversations": says("Hi", "Ho"), "kto_tag": False}]
    report = bring_in(write_rows(tmp_path / "k.jsonl", rows), tmp_path / "k.own.jsonl", "sharegpt")
    assert report.num_records == 1
    other = write_rows(tmp_path / "s.jsonl", [{"conversations": skipped}])
    with pytest.raises(DatasetError, match="no record could be taken"):
        bring_in(other, tmp_path / "c.jsonl", "sharegpt")
    assert not (tmp_path / "c.jsonl").exists()
    assert not (tmp_path / "c.left.jsonl").exists()


def test_objects_of_ms_swift(tmp_path: Path) -> None:
    row = {
        "messages": messages("<image>Find <ref-object>", "<bbox> and <bbox>"),
        "images": ["a.png"],
        "width": 200,
        "height": 100,
        "objects": {"ref": ["a cat"], "bbox": [[20, 10, 100, 50], [0, 0, 200, 100]]},
    }
    unsized = {key: value for key, value in row.items() if key != "width"}
    surplus = row | {"objects": {"ref": [], "bbox": [[1, 2, 3, 4]]}}
    source = write_rows(tmp_path / "in.jsonl", [row, unsized, surplus])
    report = bring_in(source, tmp_path / "a.jsonl", "sharegpt")
    (got,) = read_rows(tmp_path / "a.jsonl")
    assert [turn["value"] for turn in got["conversations"]] == [
        "<image>Find <ref>a cat</ref>",
        "<box>[[100, 100, 500, 500]]</box> and <box>[[0, 0, 1000, 1000]]</box>",
    ]
    assert sorted(report.notes.left_records) == [
        "boxes in pixels without the image's width and height",
        "more <ref-object> than objects",
    ]


def test_keys_and_paths_are_told(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(b"")
    rows = [
        {"messages": messages([{"type": "image", "image": "a.png"}], "x"), "split": "train"},
        {"messages": messages([{"type": "image", "image": "no.png"}], "x"), "split": "train"},
        {"messages": messages([image_part(str(tmp_path / "pics" / "a.png"))], "x")},
        {"messages": messages([image_part("/elsewhere/a.png")], "x")},
        {"messages": messages([image_part(f"file://{tmp_path}/pics/a.png")], "x")},
        {"messages": [{"role": "user", "content": "x", "name": "Bo"}, *messages(0, "y")[1:]]},
        {"messages": messages([{"type": "image"}], "x"), "images": ["a.png"]},
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    report = bring_in(source, tmp_path / "o" / "a.jsonl", "openai", root=tmp_path / "pics")
    assert report.notes.kept == {"split": 2}
    assert report.notes.left == {"name of a message": 1}
    assert report.notes.changes == {
        "named files that do not exist below the root": 2,
        "absolute paths made relative to the root": 2,
        "paths outside the root, which training refuses (give --root)": 1,
    }
    images = [row.get("image") for row in read_rows(tmp_path / "o" / "a.jsonl")]
    assert images == ["a.png", "no.png", "a.png", "/elsewhere/a.png", "a.png", None, "a.png"]
    text = report.as_text()
    assert "carried on, not read by training: split (2)" in text
    assert "left out: name of a message (1)" in text


def test_sizes_are_read_from_headers_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rows: list[Row] = [
        {"image": "a.png", "conversations": says("?", "!")},
        {"image": ["a.png", "a.png"], "conversations": says("?", "!")},
        {"image": "no.png", "conversations": says("?", "!")},
        {"image": "a.png", "width": 80, "conversations": says("?", "!")},
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    bring_in(source, tmp_path / "own.jsonl", "llava", state_sizes=True)
    got = [(row.get("width"), row.get("height")) for row in read_rows(tmp_path / "own.jsonl")]
    assert got == [(8, 4), ([8, 8], [4, 4]), (None, None), (80, None)]


def test_a_meta_json_is_merged_into(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ALPACA[:2])
    meta = tmp_path / "meta.json"
    bring_in(source, tmp_path / "a.jsonl", "alpaca", meta=meta)
    bring_in(source, tmp_path / "b.jsonl", "alpaca", meta=meta, name="bee")
    assert [spec.name for spec in load_meta(meta)] == ["a", "bee"]
    with pytest.raises(ConfigError, match='has an entry "bee" already'):
        bring_in(source, tmp_path / "c.jsonl", "alpaca", meta=meta, name="bee")
    assert not (tmp_path / "c.jsonl").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ALPACA[:1])
    for name in ("x.jsonl", "x.meta.json", "x.left.jsonl", "x_images"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match="exists and is not overwritten"):
            bring_in(source, tmp_path / "x.jsonl", "alpaca")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=r"want a \.jsonl"):
        bring_in(source, tmp_path / "x.json", "alpaca")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        send_out(source, source, "alpaca")
    with pytest.raises(ConfigError, match="no such file"):
        bring_in(tmp_path / "no.json", tmp_path / "x.jsonl", "alpaca")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_odd_files(tmp_path: Path) -> None:
    lines = "\ufeff" + "".join(json.dumps(row) + "\r\n\n" for row in ALPACA[:2])
    for name, encoding in (("a", "utf-8"), ("b", "utf-16")):
        text = lines if encoding == "utf-8" else lines.removeprefix("\ufeff")
        (tmp_path / f"{name}.jsonl").write_bytes(text.encode(encoding))
        bring_in(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.own.jsonl", "alpaca")
        assert len(read_rows(tmp_path / f"{name}.own.jsonl")) == 2
    (tmp_path / "c.jsonl").write_bytes(b'{"a": NaN}\n\xff\n{\n' + json.dumps(ALPACA[0]).encode())
    report = bring_in(tmp_path / "c.jsonl", tmp_path / "c.own.jsonl", "alpaca")
    assert report.num_records == 1
    assert [place.split(": ")[0][-1] for place in report.notes.places] == ["1", "2", "3"]


def test_exports_tell_what_they_leave(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", LLAVA)
    report = send_out(source, tmp_path / "s.jsonl", "sharegpt")
    assert report.notes.left == {"clip": 1, "width": 1, "height": 1}
    assert report.notes.changes == {"<image> put before the first question": 1}
    report = send_out(source, tmp_path / "o.jsonl", "openai")
    assert sum(report.notes.changes.values()) >= 1
    refused = write_rows(tmp_path / "bad.jsonl", [{"x": 1}])
    with pytest.raises(DatasetError, match="no record could be written"):
        send_out(refused, tmp_path / "o2.jsonl", "openai")
    assert not (tmp_path / "o2.jsonl").exists()
