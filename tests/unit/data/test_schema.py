from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from internvl_chat.data.schema import BadRecordError, Record, parse_record


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def parse(*turns: dict[str, str], **fields: Any) -> Record:
    return parse_record(json.dumps({"conversations": turns, **fields}), where="a.jsonl:3")


def test_text_only() -> None:
    record = parse(human("Hi"), gpt("Hello"), human("Bye"), gpt("Ciao"), id=7, system="Be brief.")
    assert record.turns == (("Hi", "Hello"), ("Bye", "Ciao"))
    assert (record.images, record.video, record.system) == ((), None, "Be brief.")


def test_other_spellings_of_roles() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert parse(*turns).turns == (("Hi", "Hello"),)
    with_system = [{"role": "system", "content": "Be brief."}, *turns]
    assert parse(*with_system).system == "Be brief."
    assert parse_record(json.dumps({"messages": turns}), where="").turns == (("Hi", "Hello"),)


def test_a_leading_answer_is_dropped_and_noted() -> None:
    record = parse(gpt("Welcome"), human("Hi"), gpt("Hello"))
    assert (record.turns, record.dropped_leading_answer) == ((("Hi", "Hello"),), True)
    assert not parse(human("Hi"), gpt("Hello")).dropped_leading_answer


@pytest.mark.parametrize(
    ("image", "questions", "expected"),
    [
        ("a.jpg", ["<image>\nWhat?"], ["<image>\nWhat?"]),
        ("a.jpg", ["What?"], ["<image>\nWhat?"]),
        (["a.jpg", "b.jpg"], ["Compare."], ["<image>\n<image>\nCompare."]),
        (["a.jpg", "b.jpg"], ["A <image>", "B <image>"], ["A <image>", "B <image>"]),
        (["a.jpg"], ["Hi", "<image> ?"], ["Hi", "<image> ?"]),
        ("", ["Hi"], ["Hi"]),
        ([], ["Hi"], ["Hi"]),
        (None, ["Hi"], ["Hi"]),
    ],
)
def test_image_tags(image: object, questions: list[str], expected: list[str]) -> None:
    turns = [turn for question in questions for turn in (human(question), gpt("Yes"))]
    assert [question for question, _ in parse(*turns, image=image).turns] == expected


def test_video_tags() -> None:
    record = parse(human("What?"), gpt("Yes"), video="v.mp4", clip=[1, 2.5])
    assert (record.turns[0][0], record.video, record.clip) == ("<video>\nWhat?", "v.mp4", (1, 2.5))
    assert parse(human("See <video>."), gpt("Yes"), video="v.mp4").turns[0][0] == "See <video>."
    assert parse(human("HTML <video>?"), gpt("a <video> tag")).turns[0][0] == "HTML <video>?"


@pytest.mark.parametrize(
    ("turns", "fields", "code", "message"),
    [
        ([human("<image> <image>"), gpt("y")], {"image": "a"}, "TAG_MISMATCH", "2 <image> placeho"),
        ([human("<image>"), gpt("y")], {}, "TAG_MISMATCH", "1 <image> placeholder, 0 files"),
        ([human("<image>"), gpt("y")], {"image": ["a", "b"]}, "TAG_MISMATCH", "1 <image> placehol"),
        ([human("q"), gpt("<image>")], {"image": "a"}, "TAG_IN_ANSWER", "<image> in the answer"),
        ([human("q"), gpt("<image>")], {}, "TAG_IN_ANSWER", "<image> in the answer of round 0"),
        ([human("q"), gpt("<video>")], {"video": "v"}, "TAG_IN_ANSWER", "<video> in the answer"),
        ([human("<video><video>"), gpt("y")], {"video": "v"}, "TAG_MISMATCH", "2 <video>"),
        (
            [human("<image>"), gpt("y")],
            {"video": "v"},
            "TAG_MISMATCH",
            "<image> placeholder in a v",
        ),
        ([human("q")], {}, "TURNS", "1 turns: the last question has no answer"),
        ([gpt("y")], {}, "TURNS", "no question is left"),
        ([], {}, "SCHEMA", '"conversations" is missing or empty'),
        ([human("q"), human("q")], {}, "TURNS", "turn 1 is user's, want assistant's"),
        ([human("q"), gpt(" \n")], {}, "EMPTY_ANSWER", "the answer in turn 1 is empty"),
        ([{"from": "bot", "value": "q"}, gpt("y")], {}, "ROLE", "unknown role 'bot' in turn 0"),
        ([{"from": "human", "value": None}], {}, "SCHEMA", 'the text ("value") of turn 0 is None'),
        ([human("<IMG_CONTEXT>"), gpt("y")], {}, "CONTROL_TOKEN", "<IMG_CONTEXT>"),
        ([human("q"), gpt("<|im_end|>")], {}, "CONTROL_TOKEN", "<|im_end|>"),
        ([human("q"), gpt("y")], {"system": "<|im_start|>"}, "CONTROL_TOKEN", "<|im_start|>"),
        ([human("q"), gpt("y")], {"image": 3}, "SCHEMA", '"image" is 3'),
        ([human("q"), gpt("y")], {"image": ["a", ""]}, "SCHEMA", "want a path or a list"),
        ([human("q"), gpt("y")], {"image": "a", "video": "v"}, "SCHEMA", "both"),
        ([human("q"), gpt("y")], {"video": "v", "clip": [3, 1]}, "SCHEMA", '"clip" is [3, 1]'),
        ([human("q"), gpt("y")], {"system": 1}, "SCHEMA", '"system" is 1'),
    ],
)
def test_bad_records(
    turns: list[dict[str, str]], fields: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(BadRecordError) as caught:
        parse(*turns, **fields)
    assert caught.value.code == code
    assert str(caught.value).startswith("a.jsonl:3: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("raw", [b"{", b"", b"{'a': 1}", b'{"a": "\xff"}'])
def test_not_json(raw: bytes) -> None:
    with pytest.raises(BadRecordError, match="not JSON") as caught:
        parse_record(raw, where="a.jsonl:3")
    assert caught.value.code == ("NOT_UTF8" if b"\xff" in raw else "JSON")


def test_not_an_object() -> None:
    with pytest.raises(BadRecordError, match="a record is a list, want an object"):
        parse_record(b"[1]", where="a.jsonl:3")


def test_a_literal_img_is_only_a_warning() -> None:
    record = parse(human("Write HTML"), gpt('<img src="a"> <ref>x</ref><box>[[1, 2, 3, 4]]</box>'))
    assert record.warnings == ()
    assert parse(human("q"), gpt("<img>")).warnings == ("IMG_TAG: the text holds a literal <img>",)


def test_sizes_and_length() -> None:
    turns = (human("q"), gpt("y"))
    assert parse(*turns, image="a", width=640, height=480).sizes == ((640, 480),)
    assert parse(*turns, image=["a", "b"], width=[6, 4], height=[3, 2]).sizes == ((6, 3), (4, 2))
    assert parse(*turns, image=["a", "b"], width=6, height=3).sizes is None
    assert parse(*turns, image="a", width=None, height=480).sizes is None
    assert parse(*turns, length=99).length == 99


def test_a_bad_record_error_travels_between_processes() -> None:
    error = BadRecordError("CODE", "problem", where="a:1", fix="Mend.")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, str(copy)) == ("CODE", "a:1: problem. Mend.")
