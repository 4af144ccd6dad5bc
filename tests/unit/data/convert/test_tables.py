"""CSV and Parquet, there and back."""

from __future__ import annotations

import builtins
import csv
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from internvl_chat.data.convert import tables
from internvl_chat.errors import ConfigError, DatasetError
from tests.unit.data.convert.common import Row, bring_in, png, read_rows, send_out, write_rows


def write_csv(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def rounds(record: Row) -> list[str]:
    return [turn["value"] for turn in record["conversations"]]


def test_a_row_is_a_record(tmp_path: Path) -> None:
    source = write_csv(
        tmp_path / "q.csv",
        "\ufeffid,image,question,answer,topic\r\n"
        '007,a.png,"What, exactly?","a\nb",x\r\n'
        "\r\n"
        ",,Hi,Ho,\r\n"
        "9,b.png,What?,,y\r\n",
    )
    report = bring_in(source, tmp_path / "own.jsonl", "csv")
    first, second = read_rows(tmp_path / "own.jsonl")
    assert first == {
        "id": "007",
        "image": "a.png",
        "topic": "x",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat, exactly?"},
            {"from": "gpt", "value": "a\nb"},
        ],
    }
    assert rounds(second) == ["Hi", "Ho"]
    assert "image" not in second
    assert report.notes.kept == {"topic": 1}
    assert report.notes.places == [f"{source}:6: no answer"]  # lines of the file, not rows


def test_rows_of_an_image_are_one_conversation_if_asked_for(tmp_path: Path) -> None:
    text = "image,question,answer\na.png,1?,1\na.png,2?,2\nb.png,3?,3\na.png,4?,4\n,5?,5\n,6?,6\n"
    source = write_csv(tmp_path / "q.csv", text)
    bring_in(source, tmp_path / "one.jsonl", "csv")
    assert len(read_rows(tmp_path / "one.jsonl")) == 6
    bring_in(source, tmp_path / "many.jsonl", "csv", group="image")
    got = [rounds(record) for record in read_rows(tmp_path / "many.jsonl")]
    assert got == [
        ["<image>\n1?", "1", "2?", "2"],
        ["<image>\n3?", "3"],
        ["<image>\n4?", "4"],
        ["5?", "5"],
        ["6?", "6"],
    ]


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    header = ["Filename", "prompt", "caption", "label", "x"]
    found = tables.find_columns(header, {}, "q.csv")
    assert (found.image, found.question, found.answer) == ("Filename", "prompt", "label")
    named = tables.find_columns(header, {"answer": "caption", "question": "x"}, "q.csv")
    assert (named.image, named.question, named.answer) == ("Filename", "x", "caption")
    with pytest.raises(ConfigError, match=r"has no column 'captoin'.*Did you mean 'caption'"):
        tables.find_columns(header, {"answer": "captoin"}, "q.csv")
    with pytest.raises(ConfigError, match="no column looks like answers"):
        tables.find_columns(["image", "question"], {}, "q.csv")
    with pytest.raises(ConfigError, match="is no role of a column"):
        tables.find_columns(header, {"picture": "x"}, "q.csv")


def test_one_question_for_all(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "q.csv", "file_name,caption\na.png,A cat.\n")
    with pytest.raises(DatasetError, match="--question asks one of all"):
        bring_in(source, tmp_path / "own.jsonl", "csv")
    bring_in(source, tmp_path / "own.jsonl", "csv", question="Describe it.")
    assert rounds(read_rows(tmp_path / "own.jsonl")[0]) == ["<image>\nDescribe it.", "A cat."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b"image,answer\na.png,b,c\n", r"q\.csv:2: 3 cells, 2 columns"),
        ("q.csv", b"", "has no header"),
        ("q.csv", b"image,answer\n", "holds no row"),
        ("q.csv", b"\n", "has no header"),
        ("q.csv", b"a,a\n1,2\n", "two columns are called 'a'"),
        ("q.csv", b"image;answer\na;b\n", "not divided by commas"),
        ("q.csv", b'image,answer\na.png,"b\n', r"q\.csv:\d: is no CSV|is no CSV"),
        ("q.csv", b"image,answer\na.png,\xe9\n", "is not UTF-8"),
    ],
)
def test_damaged_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, DatasetError), match=message):
        bring_in(tmp_path / name, tmp_path / "own.jsonl", "csv", question="?")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_spreadsheets_unicode_text_and_long_cells(tmp_path: Path) -> None:
    text = f"image\tquestion\tanswer\nü.png\tWas?\t{'x' * 200_000}\n"
    source = write_csv(tmp_path / "q.tsv", text, "utf-16")
    before = csv.field_size_limit()
    bring_in(source, tmp_path / "own.jsonl", "csv")
    assert read_rows(tmp_path / "own.jsonl")[0]["image"] == "ü.png"
    assert csv.field_size_limit() == before


def test_records_come_back_from_a_table(tmp_path: Path) -> None:
    records: list[Row] = [
        {
            "id": "a",
            "image": "a.png",
            "width": 8,
            "height": 4,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": 'A "cat", \n yes.'},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "Yes"},
            ],
        },
        {
            "id": "b",
            "image": ["a.png", "[b].png"],
            "topic": "x",
            "system": "S",
            "conversations": [
                {"from": "human", "value": "<image>\n<image>\nSame?"},
                {"from": "gpt", "value": "No"},
            ],
        },
        {
            "id": "c",
            "image": "[c].png",
            "conversations": [
                {"from": "human", "value": "<image>\n?"},
                {"from": "gpt", "value": "No"},
            ],
        },
    ]
    source = write_rows(tmp_path / "in.jsonl", records)
    report = send_out(source, tmp_path / "t.csv", "csv")
    assert not report.notes.left
    bring_in(tmp_path / "t.csv", tmp_path / "own.jsonl", "csv", group="id")
    assert read_rows(tmp_path / "own.jsonl") == records


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_images_in_parquet(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"image": {"bytes": png(), "path": "x.png"}, "question": "What?", "answer": "red", "n": 1},
        {"image": {"bytes": None, "path": "b.png"}, "question": "What?", "answer": "b", "n": 2},
        {"image": {"bytes": b"no", "path": "c.png"}, "question": "What?", "answer": "c", "n": 3},
    ]
    schema = pa.schema(
        [("image", IMAGE), ("question", pa.string()), ("answer", pa.string()), ("n", pa.int64())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "q.parquet")
    report = bring_in(tmp_path / "q.parquet", tmp_path / "o" / "own.jsonl", "parquet")
    first, second = read_rows(tmp_path / "o" / "own.jsonl")
    assert (first["width"], first["height"], first["n"]) == (8, 4, 1)
    assert (Path(report.root) / first["image"]).read_bytes() == png()
    assert Path(report.root, second["image"]) == tmp_path / "b.png"
    assert report.notes.left_records == {"embedded bytes that are no image": 1}
    assert report.notes.places == [f"{tmp_path}/q.parquet, row 2: embedded bytes that are no image"]
    assert read_rows(tmp_path / "o" / "own.left.jsonl")[0]["record"][0]["image"]["bytes"] == (
        "(2 bytes)"
    )


def test_several_answers(tmp_path: Path) -> None:
    cells = [["red", "blue", "blue"], ["one"], [], None]
    rows = [{"question": "What?", "answers": cell} for cell in cells]
    schema = pa.schema([("question", pa.string()), ("answers", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "q.parquet")
    report = bring_in(tmp_path / "q.parquet", tmp_path / "own.jsonl", "parquet")
    first, second = read_rows(tmp_path / "own.jsonl")
    assert (rounds(first)[1], first["references"]) == ("blue", ["red", "blue"])
    assert rounds(second)[1] == "one"
    assert "references" not in second
    assert report.notes.left_records == {"no answer": 2}


def test_conversations_in_parquet(tmp_path: Path) -> None:
    pair = pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())])
    schema = pa.schema([("images", pa.list_(IMAGE)), ("texts", pa.list_(pair))])
    texts = [{"user": "Which?", "assistant": "red", "source": "vqa"}] * 2
    rows = [{"images": [{"bytes": png(), "path": None}], "texts": texts}]
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, folder / f"train-0000{number}.parquet")
    report = bring_in(folder, tmp_path / "own.jsonl", "parquet")
    got = read_rows(tmp_path / "own.jsonl")
    assert len(got) == 2
    assert rounds(got[0]) == ["<image>\nWhich?", "red", "Which?", "red"]
    assert report.notes.left == {"source of a text": 4}
    assert report.num_images_written == 1


def test_parts_in_parquet_hold_no_nulls(tmp_path: Path) -> None:
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "red"}]
    rows: list[Row] = [
        {
            "images": [{"bytes": png(), "path": None}],
            "messages": [
                {"role": "user", "content": content},
                {"role": "assistant", "content": answer},
            ],
        }
    ]
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    message = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
    schema = pa.schema([("images", pa.list_(IMAGE)), ("messages", pa.list_(message))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "q.parquet")
    bring_in(tmp_path / "q.parquet", tmp_path / "own.jsonl", "parquet")
    assert rounds(read_rows(tmp_path / "own.jsonl")[0]) == ["<image>\nWhat?", "red"]


def test_records_come_back_from_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png("blue"))
    turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "No"}]
    two = [{"from": "human", "value": "<image><image>"}, *turns[1:]]
    text = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    records: list[Row] = [
        {"id": "a", "image": "a.png", "width": 8, "height": 4, "conversations": turns},
        {"id": 7, "image": ["a.png", "b.png"], "tags": {"x": [1]}, "conversations": two},
        {"system": "S", "conversations": text},
    ]
    source = write_rows(tmp_path / "in.jsonl", records)
    send_out(source, tmp_path / "paths.parquet", "parquet")
    bring_in(tmp_path / "paths.parquet", tmp_path / "paths.jsonl", "parquet")
    assert read_rows(tmp_path / "paths.jsonl") == records
    send_out(source, tmp_path / "bytes.parquet", "parquet", embed=True)
    report = bring_in(tmp_path / "bytes.parquet", tmp_path / "o" / "own.jsonl", "parquet")
    got = read_rows(tmp_path / "o" / "own.jsonl")
    for record, original in zip(got, records, strict=True):
        for path, before in itertools.zip_longest(as_list(record), as_list(original)):
            assert (Path(report.root) / path).read_bytes() == (tmp_path / before).read_bytes()
        unlike = {"image", "width", "height"}
        assert {k: v for k, v in record.items() if k not in unlike} == {
            k: v for k, v in original.items() if k not in unlike
        }


def as_list(record: Row) -> list[str]:
    image = record.get("image", [])
    return [image] if isinstance(image, str) else image


def test_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"need pyarrow\. pip install"):
        bring_in(tmp_path / "q.parquet", tmp_path / "own.jsonl", "parquet")


def test_what_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="is no Parquet file"):
        bring_in(tmp_path / "q.parquet", tmp_path / "own.jsonl", "parquet")
    with pytest.raises(ConfigError, match=r"no such file, or no \.parquet in it"):
        bring_in(tmp_path / "no", tmp_path / "own.jsonl", "parquet")
