"""What is counted of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.convert.counting import (
    Distribution,
    as_table,
    count_datasets,
    count_words,
)
from tests.unit.data.convert.common import write_rows


def says(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_counts(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"image": "a.png", "width": 20, "height": 10, "conversations": says("<image>\nWhat?", "a")},
        {"image": ["a.png", "b.png"], "conversations": says("Two?", "a b c", "And?", "d")},
        {"video": "v.mp4", "system": "S", "conversations": says("<video>\n什么 is it", "猫")},
        {
            "conversations": says(
                "Where?", "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box> [0.1, 0.2, 0.3, 0.4] [1, 2]"
            )
        },
        {"conversations": 3},
        [1],
    ]
    source = write_rows(tmp_path / "a.jsonl", rows)
    (counts,) = count_datasets(source)
    got = counts.as_dict()
    assert {key: value for key, value in got.items() if isinstance(value, int)} == {
        "records": 4,
        "unreadable": 2,
        "text_only": 1,
        "images": 3,
        "different_images": 2,
        "videos": 1,
        "with_system": 1,
        "boxes": 2,
        "boxes_0_to_1": 1,
        "images_without_stated_size": 2,
    }
    assert got["rounds"] == {"sum": 5, "mean": 1.25, "min": 1, "p50": 1, "p95": 2, "max": 2}
    assert got["width"]["max"] == 20
    assert got["words"]["answer"]["max"] == 14
    text = as_table([counts])
    assert text.startswith("a: 4 records, 2 unreadable lines (data check says why)\n")
    assert "images 3 (2 different), videos 1, text only 1, with system 1" in text
    entry = {"root": "", "annotation": str(source), "data_augment": False, "repeat_time": 1}
    (tmp_path / "meta.json").write_text(json.dumps({"x": entry | {"length": 4}}))
    assert count_datasets(tmp_path / "meta.json")[0].as_dict() == got


@given(values=st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_distributions(values: list[int]) -> None:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    got = distribution.as_dict()
    assert (got["sum"], got["min"], got["max"]) == (sum(values), min(values), max(values))
    assert sum(value <= got["p50"] for value in values) >= len(values) / 2
    assert sum(value < got["p50"] for value in values) < len(values) / 2


@pytest.mark.parametrize(
    ("text", "words"), [("", 0), ("a  b\nc", 3), ("这是 a cat", 4), ("né à Paris", 3)]
)
def test_words(text: str, words: int) -> None:
    assert count_words(text) == words
