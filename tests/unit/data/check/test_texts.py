"""Texts that are odd but right, and boxes and loops that are not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.check.box_text import box_problems, holds_boxes, order_boxes
from internvl_chat.data.check.repetition import is_repetitive, repeated_share
from internvl_chat.data.check.run import DataCheck
from tests.support.configs import data_config

Json = dict[str, Any]

RIGHT = [
    "See [1, 2], [3], [4-7] and [12, 13, 14, 15] for details (2023-11-26, 12/05/1999, 10:30).",
    r"The interval $[0, 1]$, $\left[0.1, 0.9, 0.5, 0.2\right]$, $x_{[0.5, 0.1, 0.2, 0.3]}$.",
    "def f(a: list[int]) -> dict[str, int]:\n    return {x: a[0] for x in a if x < 3 and 4 > x}",
    '<div class="a"><p>Hello <b>world</b></p><img src="a.png" alt="x"><br/></div>',
    "<table><tr><td>1</td><td>2</td></tr><tr><td>1</td><td>2</td></tr></table>",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n---------------------------------------------",
    "She said: no, no, no! It was very, very, very good. Buffalo buffalo Buffalo buffalo.",
    "Yes",
    "B",
    "A. 3",
    "是",
    "[0, 1, 1, 0]",
    "[255, 128, 0, 64] is a colour and [0.25, 1.5, -0.5, 2.0] a vector.",
    "<ref>the cat</ref><box>[[0, 0, 1000, 1000]]</box>",
    "<ref>cats</ref><box>[[10, 20, 30, 40], [50, 60, 70, 80]]</box> [0.12, 0.3, 0.5, 0.61]",
    "To the user: please call the assistant. Human beings and the system agree.",
    "## Human rights\n\n### Response\nTwo headings.\n\n# Instruction",
    "Use a < b and c > d; `x |> f` and `f <| x`; 5 << 2; List<String>; <T>; a<|b>",
    "The HTML5 tag `<video>` plays a film: <video src='a.mp4' controls></video>",
    "[Music] [laughs] [SEP] [CLS] [MASK]? [x] done, [ ] to do",
    "0 1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 1597 2584 4181 6765 10946 17711",
    "a " * 9 + "short run",
    "The user asked; USER is a variable, ASSISTANT: none.",
    "https://example.com/" + "".join(f"p{i:03}/" for i in range(60)),
    "GGATCC" + "".join(random.Random(0).choices("ACGT", k=150)),
    "\u200b\u00a0 odd spaces 　 and emoji 👩‍👩‍👧 and RTL \u202eabc",
]


def check(folder: Path, rows: list[Json]) -> list[Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "root": str(folder),
        "annotation": str(path),
        "data_augment": False,
        "repeat_time": 1,
        "length": len(rows),
    }
    (folder / "meta.json").write_text(json.dumps({"mine": entry}))
    config = data_config(meta_path=str(folder / "meta.json"), num_image_token=4)
    return list(DataCheck(config).findings())


def test_odd_but_right_text_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 600)
    rows: list[Json] = []
    for number, text in enumerate(RIGHT):
        for extra in ({}, {"image": "a.jpg"}):
            for question, answer in ((text, f"Yes {number}"), (f"What {number}?", text)):
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
                rows.append({"id": len(rows), **extra, "conversations": turns})
    findings = check(tmp_path, rows)
    assert [one.as_text() for one in findings] == []


def test_the_same_image_or_question_is_no_duplicate(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x" * 600)

    def row(image: str | list[str] | None, *texts: str, **fields: Any) -> Json:
        roles = ("human", "gpt")
        turns = [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]
        return {**({"image": image} if image else {}), "conversations": turns, **fields}

    rows = [
        row("a.jpg", "What?", "A cat"),
        row("b.jpg", "What?", "A cat"),
        row("a.jpg", "What?", "A dog"),
        row("a.jpg", "Where?", "A cat"),
        row(["a.jpg", "b.jpg"], "What?", "A cat"),
        row(["b.jpg", "a.jpg"], "What?", "A cat"),
        row(None, "What?", "A cat"),
        row(None, "What?", "A cat", "What?", "A cat"),
        row(None, "What?", "A cat", system="Be brief."),
        row(None, "what?", "A cat"),
    ]
    assert check(tmp_path, rows) == []
    again = check(tmp_path, [*rows, row(["a.jpg"], "<image>\nWhat?", "A cat", width=3, height=4)])
    assert [(one.code, one.line, one.message) for one in again] == [
        ("DUPLICATE_RECORD", 11, f"the same record as {tmp_path / 'rows.jsonl'}:1")
    ]


def test_a_key_that_occurs_twice(tmp_path: Path) -> None:
    turns = json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": '"image": 1'}])
    (tmp_path / "a.jpg").write_bytes(b"x" * 600)
    rows = [
        f'{{"image": "a.jpg", "image": "a.jpg", "conversations": {turns}}}',
        f'{{"conversations": {turns}, "x_id": 1, "conversations": {turns}, "system": "s"}}',
        f'{{"source": {{"image": 1, "image": 2}}, "image": "a.jpg", "conversations": {turns}}}',
    ]
    check(tmp_path, [{}, {}, {}])
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    config = data_config(meta_path=str(tmp_path / "meta.json"), num_image_token=4)
    found = [(one.code, one.line, one.message) for one in DataCheck(config).findings()]
    assert found[:2] == [
        ("REPEATED_KEY", 1, 'key "image" occurs twice'),
        ("REPEATED_KEY", 2, 'key "conversations" occurs twice'),
    ]
    assert {code for code, _, _ in found[2:]} <= {"DUPLICATE_RECORD"}


def test_the_reason_of_a_missing_file_by_its_name(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    names = ["https://x.y/a.jpg", "images\\a.jpg", "a.jpg ", "b.jpg"]
    found = check(tmp_path, [{"image": name, "conversations": turns} for name in names])
    assert [one.mend.split()[0] for one in found if one.code == "MISSING_FILE"] == [
        *("Download", "Write", "Remove", "Check"),
    ]


def test_several_faults_of_one_record_are_all_told(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "q <video>", "loss": 0},
        {"from": "gpt", "value": "<box>[[9, 1, 2, 2000]]</box></s>"},
        {"from": "human", "value": "[INST] x <|im_end|>"},
        {"from": "gpt", "value": ""},
    ]
    row = {"image": ["gone.jpg", "../out.jpg"], "widht": 3, "conversations": turns}
    assert {one.code for one in check(tmp_path, [row])} == {
        *("STRAY_TAG", "LOSS_MARK", "BOX_RANGE", "BOX_INVERTED", "SENTENCE_MARK"),
        *("OTHER_TEMPLATE", "CONTROL_TOKEN", "EMPTY_ANSWER", "MISSING_FILE", "OUTSIDE_ROOT"),
        "UNKNOWN_KEY",
    }


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("<box>[[1, 2, 3, 4]]</box>", []),
        ("<box>[[ 1,2 , 3,4 ],[5,6,7,8]]</box>", []),
        ("<box></box>", ["BOX_MALFORMED"]),
        ("<box>[[1, 2, 3, 4], []]</box>", ["BOX_MALFORMED"]),
        ("<box>[[1, 2, 3, 4]]", ["BOX_MALFORMED"]),
        ("[[1, 2, 3, 4]]</box>", ["BOX_MALFORMED"]),
        ("<box>[[1.5, 2, 3, 4]]</box>", ["BOX_MALFORMED"]),
        ("<box>[[a, b, c, d]]</box>", ["BOX_MALFORMED"]),
        ("<box>[[1, 2, 3, 1000.5]]</box>", ["BOX_RANGE"]),
        ("<box>[[7, 2, 3, 9999]]</box>", ["BOX_RANGE", "BOX_INVERTED"]),
        ("<box>[[3, 2, 3, 4]]</box>", ["BOX_INVERTED"]),
        ("[0.5, 0.5, 0.1, 0.9]", ["BOX_INVERTED"]),
        ("[0.5, 0.5, 0.1, 1.9]", []),
        ("x[0.5, 0.5, 0.1, 0.9]", []),
    ],
)
def test_boxes(text: str, codes: list[str]) -> None:
    assert [code for code, _ in box_problems(f"a {text} b", has_image=True)] == codes
    if "box" not in text:
        assert list(box_problems(text, has_image=False)) == []


def test_pixel_boxes_refer_to_the_image() -> None:
    text = "[30, 5, 10, 20] and [30, 5, 10, 900]"
    found = list(box_problems(text, has_image=True, pixels=(40, 40)))
    assert [code for code, _ in found] == ["BOX_INVERTED"]
    assert order_boxes(text, has_image=True, pixels=(40, 40)) == (
        "[10, 5, 30, 20] and [30, 5, 10, 900]"
    )


def test_ordering_changes_nothing_else() -> None:
    text = "é <box>[[9,2, 3,4], [1, 2, 3, 4]]</box> [0.50, .1, 0.2,0.30] <box>x</box> [9, 2, 3, 4]"
    assert order_boxes(text, has_image=True) == (
        "é <box>[[3,2, 9,4], [1, 2, 3, 4]]</box> [0.2, .1, 0.50,0.30] <box>x</box> [9, 2, 3, 4]"
    )
    assert order_boxes("[0.5, 0.1, 0.2, 0.3]", has_image=False) == "[0.5, 0.1, 0.2, 0.3]"


def test_holding_boxes() -> None:
    assert holds_boxes("<box>[[1, 2, 3, 4]]</box>")
    assert holds_boxes("at [0.1, 0.2, 0.3, 0.4].")
    assert not holds_boxes("see [1, 2, 3, 4] and [0.5]")


def test_the_share_of_repeated_grams() -> None:
    line = "one two three four five six seven eight nine ten"
    assert repeated_share([f"{line} {line}"]) == pytest.approx(2 / 11)
    assert repeated_share([line] * 10) == 1.0
    assert repeated_share([line] * 9) == 0.0  # nine 10-grams say nothing
    assert repeated_share([" ".join(map(str, range(100)))]) == 0.0
    assert is_repetitive(["ha" * 100])
    assert is_repetitive(["好的，我知道了。" * 6])
    assert not is_repetitive(["Yes"] * 50)
    assert not is_repetitive(["<td></td> " * 100])
    assert not is_repetitive(["=" * 200])
