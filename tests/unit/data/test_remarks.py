from __future__ import annotations

import json
from typing import Any

import pytest

from internvl_chat.data.remarks import (
    record_key_remarks,
    shown,
    split_remark,
    text_remarks,
    turn_key_remarks,
)
from internvl_chat.data.schema import BadRecordError, Record, parse_record, read_record


def codes(remarks: Any) -> list[str]:
    return sorted(split_remark(remark)[0] for remark in remarks)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"id": 1, "image": "a", "width": 1, "height": 1, "length": 9, "system": ""}, []),
        ({"source": "coco", "question_id": 3, "model": "gpt-4", "score": 0.5}, []),
        ({"url": "https://a.b/c.jpg", "image_id": 7, "dialogue_id": 3, "skill": "count"}, []),
        ({"videos": None, "images": [], "loss": None, "audio": ""}, []),
        ({"videos": ["a.mp4"]}, ["MEDIA_KEY"]),
        ({"image_path": "a.png"}, ["MEDIA_KEY"]),
        ({"Image": "a"}, ["MEDIA_KEY"]),
        ({"image_urls": ["x"]}, ["MEDIA_KEY"]),
        ({"video_path": "x"}, ["MEDIA_KEY"]),
        ({"audios": ["a.wav"]}, ["MEDIA_KEY"]),
        ({"picture_file": "x.PNG"}, ["MEDIA_KEY"]),
        ({"attachment": ["x.webp"]}, ["MEDIA_KEY"]),
        ({"mask": "a_mask.png"}, ["MEDIA_KEY"]),
        ({"media": [{"path": "x.mov"}]}, ["MEDIA_KEY"]),
        ({"multi_modal_data": {"image": 1}}, ["MEDIA_KEY"]),
        ({"image": "a.jpg", "images": ["b.jpg"]}, ["MEDIA_KEY"]),
        ({"image": "a.jpg", "images": ["a.jpg"]}, []),
        ({"image": "x/a.jpg", "image_path": "/data/x/a.jpg", "img_size": 3}, ["UNKNOWN_KEY"]),
        ({"image": "a.jpg", "image_url": "https://x.y/17", "frame": 3}, []),
        ({"image": "a.jpg", "video_path": "v.mp4"}, ["MEDIA_KEY"]),
        ({"image": ["a.jpg", "b.jpg"], "image_paths": ["a.jpg", "c.jpg"]}, ["MEDIA_KEY"]),
        ({"widht": 3}, ["UNKNOWN_KEY"]),
        ({"rejected": "x", "chosen": "y"}, ["UNKNOWN_KEY", "UNKNOWN_KEY"]),
        ({"loss": False}, ["LOSS_MARK"]),
        ({"loss": True, "weight": 1.0, "train": "true", "loss_scale": 1}, []),
        ({"weight": 0.5}, ["LOSS_MARK"]),
        ({"loss_scale": "ignore"}, ["LOSS_MARK"]),
        ({"train_on_inputs": False}, ["LOSS_MARK"]),
        ({"kto_tag": False}, ["LOSS_MARK"]),
        ({"label": False}, ["LOSS_MARK"]),
        ({"mask": 1}, ["LOSS_MARK"]),
        ({"mask": 0, "ignore": False, "masked": "false"}, []),
        ({"no_loss": True}, ["LOSS_MARK"]),
    ],
)
def test_keys_of_records(fields: dict[str, Any], expected: list[str]) -> None:
    assert codes(record_key_remarks(fields)) == expected


def test_a_misspelt_key_is_told_with_the_right_one() -> None:
    assert list(record_key_remarks({"widht": 3})) == [
        'UNKNOWN_KEY: key "widht" is not read. Did you mean "width"?'
    ]


def test_keys_of_turns() -> None:
    turn = {"from": "gpt", "value": "x", "loss": False, "image": "a.jpg", "name": "bot"}
    assert codes(turn_key_remarks(turn)) == ["LOSS_MARK", "MEDIA_KEY"]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("<video>\nWhat?", "x", ["STRAY_TAG"]),
        ("The HTML tag `<video>`?", "x", []),
        ("<video><source></video>?", "x", []),
        ("What?", "Use <video> in HTML.", []),
        ("<Image><Source/></Image> is XAML, [IMG]http://a.b[/IMG] BBCode", "x", []),
        ("<|image_pad|> What?", "x", ["STRAY_TAG"]),
        ("< image > What?", "x", ["STRAY_TAG"]),
        ("<Image>", "x", ["STRAY_TAG"]),
        ("q", "a <img> b </img>", ["IMG_TAG", "IMG_TAG"]),
        ("q", "a</s>", ["SENTENCE_MARK"]),
        ("q", "<|endoftext|>", ["OTHER_TEMPLATE"]),
        ("q", "<|im_end|>", []),  # an error
        ("[INST] q [/INST]", "x", ["OTHER_TEMPLATE", "OTHER_TEMPLATE"]),
        ("USER: q ASSISTANT:", "x", ["OTHER_TEMPLATE"]),
        ("USER: q", "ASSISTANT: x", []),
        ("q", "### Instruction:\nx\n### Response:\ny", ["OTHER_TEMPLATE"]),
        ("q", "### Response:\ny", []),
        ("q", "<start_of_turn>model", ["OTHER_TEMPLATE"]),
    ],
)
def test_leftovers_in_text(question: str, answer: str, expected: list[str]) -> None:
    assert codes(text_remarks([question], [answer], video=False)) == expected


def test_a_videos_own_tag_is_none() -> None:
    assert text_remarks(["<video>\nWhat?"], ["x"], video=True) == []


def test_values_are_shown_in_short() -> None:
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    assert shown(nested) == "a deeply nested list"
    assert len(shown("x" * 99)) == 60
    assert shown(False) == "false"


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def parse(**fields: Any) -> Record:
    return parse_record(json.dumps({"conversations": turns("q", "a"), **fields}), where="a:1")


def test_nan_is_read_as_null_and_told() -> None:
    record = parse(score=float("nan"), top=float("-inf"), note="NaN stays")
    assert [split_remark(one)[0] for one in record.warnings] == ["NAN"]
    assert parse(image="a", width=float("nan"), height=3).sizes is None
    assert parse(image="a", width=1e308, height=3).sizes == ((1e308, 3),)
    with pytest.raises(BadRecordError, match="number is infinity"):
        parse_record(b'{"width": 1e999}', where="a:1")
    with pytest.raises(BadRecordError, match="not JSON"):
        parse_record(b'{"a": NaN, "b": "\\"', where="a:1")


def test_a_byte_order_mark_within_the_file_is_passed_over() -> None:
    raw = json.dumps({"conversations": turns("NaN?", "a")}).encode()
    assert parse_record(b"\xef\xbb\xbf" + raw, where="a:2").turns == (("NaN?", "a"),)


def test_a_line_that_is_not_utf8_names_the_byte() -> None:
    with pytest.raises(BadRecordError) as caught:
        parse_record('{"a": "Café"}'.encode("latin-1"), where="a:2")
    assert caught.value.code == "NOT_UTF8"
    assert "byte 0xe9 at column 11" in str(caught.value)


def test_an_empty_key_does_not_hide_its_other_spelling() -> None:
    assert parse(image=None, images=["a.jpg"]).images == ("a.jpg",)
    assert parse(image="", images="a.jpg").images == ("a.jpg",)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"image": "a.mp4"}, "VIDEO_AS_IMAGE"),
        ({"image": ["a.jpg", "b.WebM"]}, "VIDEO_AS_IMAGE"),
        ({"image": ["a", "b"], "width": [3], "height": [4]}, "SCHEMA"),
        ({"image": "a", "width": [3, 4], "height": 5}, "SCHEMA"),
        ({"video": "v", "clip": [0, float("inf")]}, "SCHEMA"),
    ],
)
def test_more_bad_records(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        parse(**fields)
    assert caught.value.code == code


def test_reading_tells_all_problems() -> None:
    row = {"image": 3, "conversations": [*turns("q <|im_end|>", ""), {"from": "x", "value": "y"}]}
    reading = read_record(json.dumps(row), where="a:1")
    assert [one.code for one in reading.problems] == ["ROLE", "SCHEMA", "CONTROL_TOKEN"]
    assert reading.record is None
    assert reading.messages == (("user", "q <|im_end|>"), ("assistant", ""))
