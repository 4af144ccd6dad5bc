"""A JSON array -> JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.data import json2jsonl
from internvl_chat.errors import ConfigError, DatasetError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
scalars = scalars.filter(lambda value: value not in (float("inf"), float("-inf")))
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(st.dictionaries(st.text(), values), max_size=6),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    block=st.integers(1, 40),
)
def test_every_record_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, Any]],
    indent: int | None,
    ascii_only: bool,
    block: int,
) -> None:
    folder = tmp_path_factory.mktemp("json")
    source, target = folder / "a.json", folder / "a.jsonl"
    source.write_text(
        json.dumps(records, indent=indent, ensure_ascii=ascii_only),
        encoding="utf-8",
        errors="surrogatepass" if ascii_only else "strict",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json2jsonl, "_BLOCK_CHARACTERS", block)
        assert json2jsonl.convert(source, target) == len(records)
    lines = target.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == records
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "is no JSON array"),
        ('{"a": 1}\n{"a": 2}', "JSONL already: rename it"),
        ("", "is no JSON array"),
        ('[{"a": 1}, 5]', "element 2: is no object but int"),
        ('[{"a": 1}, {"b": }]', "element 2: is no JSON"),
        ('[{"a": 1}, {"b": 2}', "no comma and no end of the array after element 2"),
        ('[{"a": 1} {"b": 2}]', "no comma and no end of the array after element 1"),
        ('[{"a": 1},]', "element 2: is no JSON"),
        ('[{"a": NaN}]', "element 1: NaN is no JSON"),
        ('[{"a": 1}] x', "text follows the array"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        json2jsonl.convert(tmp_path / "a.json", tmp_path / "a.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_files_that_are_not_there_or_there_already(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read"):
        json2jsonl.convert(tmp_path / "a.json", tmp_path / "new" / "a.jsonl")
    assert not (tmp_path / "new").exists()
    (tmp_path / "b.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DatasetError, match="is no UTF-8"):
        json2jsonl.convert(tmp_path / "b.json", tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        json2jsonl.convert(tmp_path / "b.json", tmp_path / "c.jsonl")
    assert (tmp_path / "c.jsonl").read_text() == "mine"


def test_what_was_written_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2}]')
    monkeypatch.setattr(json2jsonl, "_line", lambda record: b'{"a": 1}\n')
    with pytest.raises(DatasetError, match=r"a\.jsonl:2: not written as it was read"):
        json2jsonl.convert(tmp_path / "a.json", tmp_path / "a.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
