"""Whatever stands in a file, a conversion says what is wrong; it never crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl_chat.data.convert.box_files import convert_file
from internvl_chat.data.convert.counting import as_table, count_datasets
from internvl_chat.data.convert.importing import FORMATS
from internvl_chat.data.convert.splitting import split_records
from internvl_chat.errors import UserError
from tests.unit.data.convert.common import bring_in, send_out

strings = st.sampled_from(
    [
        *("", "a.png", "\0", "../x", "/etc/passwd", "\ud800", "data:image/png;base64,AAAA"),
        *("data:", "data:;base64,%%%", "http://x/a.png", "file:///a", "file://[", "//[x", "🙂"),
        *("<image>", "<video>", "<bbox>", "<ref-object>", "[0.1, 0.2, 0.3, 0.4]", "human", "gpt"),
        *("user", "assistant", "system", "tool", "function_call", "<box>[[1, 2, 3, 4]]</box>"),
        "<ref>cat</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>",
    ]
)
keys = st.sampled_from(
    [
        *("id", "image", "images", "video", "videos", "audios", "width", "height", "clip"),
        *("conversations", "messages", "from", "value", "role", "content", "type", "text"),
        *("image_url", "url", "bytes", "path", "system", "tools", "tool_calls", "objects", "ref"),
        *("bbox", "bbox_type", "instruction", "input", "output", "history", "loss", "weight"),
        *("sent", "question", "answer", "annotations", "categories", "caption", "image_id"),
        *("category_id", "file_name", "name", "iscrowd", "kind", "texts", "length"),
    ]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from([0, -1, 1, 2**70, 0.5, 1e308]), strings
)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
turn = st.fixed_dictionaries(
    {},
    optional={
        "from": strings | junk,
        "value": strings | junk,
        "role": strings | junk,
        "content": strings | junk | st.lists(st.dictionaries(keys, strings | junk), max_size=3),
        "loss": junk,
    },
)
record = st.fixed_dictionaries(
    {},
    optional={
        "conversations": st.lists(turn, max_size=4) | junk,
        "messages": st.lists(turn, max_size=4) | junk,
        "image": strings | st.lists(strings, max_size=3) | junk,
        "images": st.lists(strings | junk, max_size=3) | junk,
        "video": strings | junk,
        "width": junk,
        "height": junk,
        "system": junk,
        "id": junk,
        "objects": junk,
        "instruction": strings | junk,
        "output": strings | junk,
        "history": junk,
        "sent": strings | junk,
        "bbox": st.lists(st.integers(-5, 5), min_size=4, max_size=4) | junk,
        "annotations": junk,
    },
)
GOOD = {
    "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
    "instruction": "?",
    "output": "!",
}
lines = st.lists(record | junk, min_size=1, max_size=4)


def write(folder: Path, rows: list[Any], as_array: bool) -> Path:
    path = folder / ("in.json" if as_array else "in.jsonl")
    text = json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, "utf-8")
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=lines, form=st.sampled_from(FORMATS), as_array=st.booleans())
def test_imports(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], form: Any, as_array: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    source = write(folder, [*rows, GOOD], as_array)
    try:
        report = bring_in(source, folder / "own.jsonl", form, question="?", state_sizes=True)
    except UserError as err:
        assert str(folder) in str(err)  # noqa: PT017
        assert not list(folder.glob(".*"))
        return
    assert report.num_records + report.notes.left_records.total() >= report.num_read
    report.as_text()
    json.dumps(report.as_dict())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=lines, form=st.sampled_from(FORMATS), embed=st.booleans())
def test_exports(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], form: Any, embed: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    source = write(folder, [*rows, GOOD], as_array=False)
    try:
        report = send_out(source, folder / "out.json", form, embed=embed)
    except UserError:
        assert not (folder / "out.json").exists()
        return
    assert report.num_records + report.notes.left_records.total() == report.num_read


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=lines, by=st.sampled_from(["image", "content", "record", "id"]))
def test_boxes_counts_and_halves(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], by: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    source = write(folder, [*rows, GOOD], as_array=False)
    try:
        for number, forms in enumerate([("unit", "1000"), ("1000", "pixel"), ("pixel", "unit")]):
            target = folder / f"{number}.jsonl"
            convert_file(source, target, forms, root=folder)  # type: ignore[arg-type]
        as_table(count_datasets(source))
        report = split_records(source, None, share=0.5, seed=0, by=by)
    except UserError:
        return
    assert sum(report.counts["in"].values()) == len(rows) + 1
