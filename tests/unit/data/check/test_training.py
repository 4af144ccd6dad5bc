"""Training tells the cheap part of the check by itself, with counts, before a weight is read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.build import build_train_dataset
from internvl_chat.data.encode import Encoder
from internvl_chat.data.schema import BadRecordError
from tests.support import tokenizers
from tests.support.configs import data_config, encode_config


def test_remarks_are_counted_not_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(40):
        turns: list[dict[str, Any]] = [
            {"from": "human", "value": "<video> q" if number < 7 else "q"},
            {"from": "gpt", "value": f"a {number}", **({"loss": False} if number % 2 else {})},
        ]
        rows.append({"conversations": turns, **({"videos": ["v"]} if number < 3 else {})})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "root": "",
        "annotation": "a.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": 40,
    }
    (tmp_path / "meta.json").write_text(json.dumps({"mine": entry}))
    config = data_config(meta_path=str(tmp_path / "meta.json"), num_image_token=4)
    with caplog.at_level(logging.WARNING):
        build_train_dataset(config, tokenizers.byte_level(), output_dir=None, seed=0)
    told = [record.getMessage() for record in caplog.records]
    assert [text.split(": ")[1:3] for text in told] == [
        ["20 records", "LOSS_MARK"],
        ["7 records", "STRAY_TAG"],
        ["3 records", "MEDIA_KEY"],
    ]
    assert 'key "loss" of a turn is false, but the text is learned as any' in told[0]


@pytest.mark.parametrize(
    "turns", [[("q", "a</s>b")], [("q </s>", "a")], [("q", "a"), ("</s>", "b")]]
)
def test_control_tokens_of_the_tokenizer_are_refused(turns: list[tuple[str, str]]) -> None:
    encoder = Encoder(tokenizers.byte_level(), encode_config(num_image_token=4))
    with pytest.raises(BadRecordError) as caught:
        encoder.encode(turns, where="a:1")
    assert caught.value.code == "CONTROL_TOKEN"
    assert "the text holds </s>, a control token of the tokenizer" in str(caught.value)
    assert encoder.encode([("q <ref>x</ref>", "<s> and <box>[[1, 2, 3, 4]]</box>")]).text
