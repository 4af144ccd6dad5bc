"""Invented data of the VQA family in the layout that the evaluator reads, a dozen questions each,
with answers whose scores were worked out by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SHORT = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Asked:
    """A question, a reply to it and what the reply is worth."""

    question: str
    gold: Any
    answer: str
    score: float
    official: float


def humans(**counts: int) -> list[str]:
    """Ten answers; ``_`` in a name is a space."""
    said = [name.replace("_", " ") for name, count in counts.items() for _ in range(count)]
    assert len(said) == 10
    return said


HUMAN_ROWS = [
    Asked("What bird is this?", humans(heron=10), "heron", 1.0, 1.0),
    Asked("Which bird does one see?", humans(heron=9, egret=1), "egret", 0.3, 0.3),
    Asked("Which bird do two see?", humans(heron=8, stork=2), "A stork", 0.6, 0.6),
    Asked("Which bird do three see?", humans(heron=7, crane=3), "Crane.", 0.9, 0.9),
    Asked("Which bird do four see?", humans(heron=6, gull=4), "the gull", 1.0, 1.0),
    Asked("Which bird does nobody see?", humans(heron=10), "owl", 0.0, 0.0),
    Asked("How many oars are there?", ["2"] * 10, "Two.", 1.0, 1.0),
    Asked("Who can tell?", ["dont know"] * 10, "don't know", 1.0, 1.0),
    Asked("What is there?", humans(nothing=10), "", 0.0, 0.0),
    Asked("How many bricks are there?", ["10000"] * 10, "10,000", 1.0, 1.0),
    Asked("Which colors has it?", humans(red_blue=10), "red,blue", 0.0, 1.0),
    Asked("What does it say?", humans(unanswerable=5, soup=5), "unanswerable", 1.0, 1.0),
]
HUMAN_MEAN, HUMAN_OFFICIAL = 7.8 / 12, 8.8 / 12

CHART_HUMAN_ROWS = [
    Asked("What was it in 2010?", "10.5", "10", 1.0, 1.0),
    Asked("What was it in 2011?", "9.4", "10", 0.0, 0.0),
    Asked("What was it in 2012?", "100", "95", 0.0, 1.0),
    Asked("What was it in 2013?", "100", "96", 1.0, 1.0),
    Asked("Which share is red?", "0.05", "5%", 1.0, 1.0),
    Asked("Which percentage is red?", "5", "5%", 0.0, 0.0),
    Asked("What was it at the start?", "0.0", "0", 0.0, 0.0),
    Asked("Does it rise?", "yes", "Yes", 1.0, 1.0),
    Asked("Which color leads?", "blue", "Blue.", 0.0, 0.0),
    Asked("When was the peak?", "2014.0", " 2014 ", 1.0, 1.0),
    Asked("How many were sold?", "1000", "1,000", 0.0, 0.0),
    Asked("How many were lost?", "0", "", 0.0, 0.0),
]
CHART_AUGMENTED_ROWS = [
    Asked("When was the low?", "2014", "1950", 1.0, 1.0),
    Asked("What is the change?", "-3", "3", 0.0, 0.0),
    Asked("What is the rate?", "1", "nan", 0.0, 0.0),
    Asked("What is the limit?", "inf", "inf", 0.0, 0.0),
    Asked("Which share is blue?", "51%", "50%", 1.0, 1.0),
    Asked("How many were made?", "1000", "1e3", 1.0, 1.0),
    Asked("Does it fall?", "Yes", "yes", 1.0, 1.0),
    Asked("Which color is last?", ["red", "green"], "green", 1.0, 1.0),
    Asked("How many were left?", "0", "0", 1.0, 1.0),
    Asked("What was it in 2015?", "105", "100", 1.0, 1.0),
]

DOCUMENT_ROWS = [
    Asked("What is the ratio?", ["0.28"], "0.38", 0.75, 0.75),
    Asked("What is the title?", ["Hello World"], "hello  world", 1.0, 1.0),
    Asked("What is the code?", ["abcd"], "ab", 0.5, 0.5),
    Asked("What is the other code?", ["abcd"], "axyz", 0.0, 0.0),
    Asked("Who wrote it?", ["ITC Limited", "itc"], "ITC Limited.", 11 / 12, 11 / 12),
    Asked("What are the initials?", ["a b"], "ab", 2 / 3, 2 / 3),
    Asked("What is the subtitle?", [""], "", 1.0, 1.0),
    Asked("What is the mark?", ["x"], "", 0.0, 0.0),
    Asked("What is the total?", ["$12.50", "12.50"], "12.50", 1.0, 1.0),
    Asked("What is the key?", ["ab   cd"], "abxx", 4 / 7, 0.0),
    Asked("Where is it?", ["Straße"], "strasse", 5 / 7, 5 / 7),
    Asked("Which town is it?", ["Zürich"], "zürich", 1.0, 1.0),
]
DOCUMENT_SUM = 0.75 + 1 + 0.5 + 11 / 12 + 2 / 3 + 1 + 1 + 4 / 7 + 5 / 7 + 1

OPTIONS = (
    "\nA. root\nB. leaf\nC. stem\nD. seed\n"
    "Answer with the option's letter from the given choices directly."
)
AI2D_ROWS = [
    Asked(f"What does {label} point at?{OPTIONS}", gold, answer, score, official)
    for label, gold, answer, score, official in [
        ("A", "C", "C", 1.0, 1.0),
        ("B", "C", "c", 1.0, 1.0),
        ("E", "C", "C.", 0.0, 1.0),
        ("F", "C", "C. stem", 0.0, 1.0),
        ("G", "C", "(C)", 0.0, 1.0),
        ("H", "B", "B ", 1.0, 1.0),
        ("I", "A", "", 0.0, 0.0),
        ("K", "A", "D", 0.0, 0.0),
        ("L", "C", "stem", 0.0, 0.0),
        ("M", "C", "Answer: C", 0.0, 0.0),
        ("N", ["A", "B"], "A", 1.0, 1.0),
        ("O", "C", "Carbon", 0.0, 0.0),
    ]
]


@dataclass(frozen=True)
class GqaAsked:
    """A question of GQA: its operations are ``operation: argument`` texts."""

    question: str
    gold: str
    structural: str
    semantic: str
    group: str | None
    operations: tuple[str, ...]
    answer: str
    is_right: bool


GQA_ROWS = [
    GqaAsked("Is it indoors?", "no", "verify", "global", "place", ("verify: in",), "No.", True),
    GqaAsked("Is it outdoors?", "yes", "verify", "global", "place", ("verify: out",), "yes", True),
    GqaAsked(
        "What color is the cup?", "red", "query", "attr", "color", ("select: cup", "query: color"),
        "Red", True,
    ),
    GqaAsked(
        "What color is the mat?", "blue", "query", "attr", "color", ("select: mat", "query: color"),
        "red", False,
    ),
    GqaAsked(
        "Who holds it?", "man", "query", "rel", None,
        ("select: it", "relate: holding", "query: name"), "the man", False,
    ),
    GqaAsked(
        "What is that?", "sign", "query", "obj", None, ("select: existing sign", "query: name"),
        "sign", True,
    ),
    GqaAsked(
        "Is there a cat?", "no", "logical", "obj", None, ("select: cat", "exist: ?"), "no ", False
    ),
    GqaAsked(
        "Is the cup or the mat red?", "cup", "choose", "attr", None,
        ("select: cup", "select: mat", "choose red: cup"), "cup..", True,
    ),
    GqaAsked(
        "Are both red?", "no", "compare", "attr", None,
        ("select: cup", "select: mat", "same color: "), "", False,
    ),
    GqaAsked(
        "What animal is it, a cat or a dog?", "cat", "choose", "cat", None,
        ("select: animal", "choose name: cat|dog"), "Cat", True,
    ),
    GqaAsked(
        "What color is the sky?", "blue", "query", "attr", "color", ("select: sky", "query: color"),
        "blue", True,
    ),
]  # fmt: skip
GQA_UNBALANCED = GqaAsked("Is it red?", "yes", "verify", "attr", None, (), "yes", True)


# ---- writing --------------------------------------------------------------------------------


def _draw(root: Path, paths: Sequence[str]) -> None:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (12 + number, 10), (20 * number % 256, 90, 160))
        image.save(root / path)


def _write_rows(root: Path, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    _draw(root, [row["image"] for row in rows])
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (root / path).write_text(text, encoding="utf-8")


def _write_json(root: Path, path: str, content: Any) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(json.dumps(content), encoding="utf-8")


def _human_answers(first_id: int) -> dict[str, Any]:
    """In another order than the questions."""
    entries = [
        {
            "question_id": first_id + number,
            "answers": [{"answer_id": i + 1, "answer": said} for i, said in enumerate(row.gold)],
        }
        for number, row in enumerate(HUMAN_ROWS)
    ]
    return {"info": {"description": "invented"}, "annotations": entries[::-1]}


def _human_rows(image: str, first_id: int, *, has_answer: bool = True) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(HUMAN_ROWS):
        fields = {
            "image": image.format(number),
            "question": row.question,
            "question_id": first_id + number,
        }
        rows.append(fields | ({"answer": row.gold[0]} if has_answer else {}))
    return rows


def write_okvqa(root: Path) -> None:
    """``data/okvqa``"""
    rows = _human_rows("data/okvqa/val2014/COCO_val2014_{:012d}.jpg", 1001)
    _write_rows(root, "data/okvqa/okvqa_val.jsonl", rows)
    _write_json(root, "data/okvqa/mscoco_val2014_annotations.json", _human_answers(1001))


def write_textvqa(root: Path) -> None:
    """``data/textvqa``, both question files; the first OCR question has the instruction already."""
    rows = _human_rows("data/textvqa/train_images/{:04d}.jpg", 2001)
    _write_rows(root, "data/textvqa/textvqa_val.jsonl", rows)
    for number, row in enumerate(rows):
        row["question"] += f"\nReference OCR token: EXIT, {number}"
    rows[0]["question"] += f"\n{SHORT}"
    _write_rows(root, "data/textvqa/textvqa_val_llava.jsonl", rows)
    _write_json(root, "data/textvqa/textvqa_val_annotations.json", _human_answers(2001))


def write_vizwiz(root: Path) -> None:
    """``data/vizwiz``: validation, and test, whose ids are the images' paths."""
    rows = _human_rows("data/vizwiz/val/VizWiz_val_{:08d}.jpg", 3001)
    _write_rows(root, "data/vizwiz/vizwiz_val.jsonl", rows)
    _write_json(root, "data/vizwiz/vizwiz_val_annotations.json", _human_answers(3001))
    tests = _human_rows("data/vizwiz/test/VizWiz_test_{:08d}.jpg", 0, has_answer=False)
    tests = [row | {"question_id": row["image"]} for row in tests]
    _write_rows(root, "data/vizwiz/vizwiz_test.jsonl", tests)


def write_chartqa(root: Path) -> None:
    """``data/chartqa``: both halves, whose ids are the same."""
    for half, rows in (("human", CHART_HUMAN_ROWS), ("augmented", CHART_AUGMENTED_ROWS)):
        written = [
            {
                "image": f"data/chartqa/ChartQA Dataset/test/png/{half}_{number}.png",
                "question": row.question,
                "question_id": number,
                "answer": row.gold,
            }
            for number, row in enumerate(rows)
        ]
        _write_rows(root, f"data/chartqa/test_{half}.jsonl", written)


def _document_rows(image: str, first_id: int, *, has_answer: bool) -> list[dict[str, Any]]:
    return [
        {
            "image": image.format(number),
            "question": row.question,
            "question_id": first_id + number,
            **({"answer": row.gold} if has_answer else {}),
        }
        for number, row in enumerate(DOCUMENT_ROWS)
    ]


def _document_answers(name: str, first_id: int) -> dict[str, Any]:
    entries = [
        {"questionId": first_id + number, "question": row.question, "answers": row.gold}
        for number, row in enumerate(DOCUMENT_ROWS)
    ]
    return {"dataset_name": name, "data": entries[::-1]}


def write_docvqa(root: Path) -> None:
    """``data/docvqa``: validation and test."""
    rows = _document_rows("data/docvqa/val/documents/abcd{:04d}_1.png", 70001, has_answer=True)
    _write_rows(root, "data/docvqa/val.jsonl", rows)
    _write_json(root, "data/docvqa/val/val_v1.0.json", _document_answers("docvqa", 70001))
    rows = _document_rows("data/docvqa/test/documents/efgh{:04d}_1.png", 75001, has_answer=False)
    _write_rows(root, "data/docvqa/test.jsonl", rows)


def write_infovqa(root: Path) -> None:
    """``data/infographicsvqa``: validation with kinds of questions, and test."""
    folder = "data/infographicsvqa"
    image = folder + "/infographicsvqa_images/{}.jpeg"
    _write_rows(root, f"{folder}/val.jsonl", _document_rows(image, 80001, has_answer=True))
    _write_rows(root, f"{folder}/test.jsonl", _document_rows(image, 85001, has_answer=False))
    content = _document_answers("infographicVQA", 80001)
    kinds = ("image span", "question span", "multiple spans", "non span")
    evidence = ("table/list", "textual", "photo/pciture/visual_objects", "figure")
    operations: tuple[list[str], ...] = (["comparison"], ["arithmetic"], ["counting"])
    for entry in content["data"]:
        number = entry["questionId"] - 80001
        entry["answer_type"] = [kinds[number % 4]]
        entry["evidence"] = [evidence[number % 4]]
        entry["operation/reasoning"] = operations[number] if number < 3 else []
    _write_json(root, f"{folder}/infographicsVQA_val_v1.0_withQT.json", content)


def write_ai2d(root: Path) -> None:
    """``data/ai2diagram``"""
    rows = [
        {
            "image": f"data/ai2diagram/AI2D_TEST/{number}.png",
            "question": row.question,
            "question_id": number,
            "answer": row.gold,
        }
        for number, row in enumerate(AI2D_ROWS)
    ]
    _write_rows(root, "data/ai2diagram/test_vlmevalkit.jsonl", rows)


def write_gqa(root: Path) -> None:
    """``data/gqa``: ids are texts; the last question is not of the balanced set."""
    asked = [*GQA_ROWS, GQA_UNBALANCED]
    rows = [
        {
            "image": f"data/gqa/images/n{number:06d}.jpg",
            "question": row.question,
            "question_id": f"{20001 + number}",
            "answer": row.gold,
        }
        for number, row in enumerate(asked)
    ]
    _write_rows(root, "data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl", rows)
    content = {f"{20001 + number}": _gqa_entry(row) for number, row in enumerate(asked)}
    _write_json(root, "data/gqa/testdev_balanced_questions.json", content)


def _gqa_entry(row: GqaAsked) -> dict[str, Any]:
    parts = [text.split(": ", 1) for text in row.operations]
    return {
        "answer": row.gold,
        "question": row.question,
        "isBalanced": row is not GQA_UNBALANCED,
        "types": {"structural": row.structural, "semantic": row.semantic},
        "groups": {"global": row.group},
        "semantic": [{"operation": name, "argument": value} for name, value in parts],
    }


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "vqa-okvqa-val": write_okvqa,
    "vqa-textvqa-val": write_textvqa,
    "vqa-textvqa-val-ocr": write_textvqa,
    "vqa-vizwiz-val": write_vizwiz,
    "vqa-vizwiz-test": write_vizwiz,
    "vqa-chartqa-test": write_chartqa,
    "vqa-chartqa-test-human": write_chartqa,
    "vqa-chartqa-test-augmented": write_chartqa,
    "vqa-docvqa-val": write_docvqa,
    "vqa-docvqa-test": write_docvqa,
    "vqa-ai2d-test": write_ai2d,
    "vqa-infovqa-val": write_infovqa,
    "vqa-infovqa-test": write_infovqa,
    "vqa-gqa-testdev": write_gqa,
}
"""Task id -> what writes its data."""

_DOCUMENT_REPLIES = [row.answer for row in DOCUMENT_ROWS]
_HUMAN_REPLIES = [row.answer for row in HUMAN_ROWS]
REPLIES: Mapping[str, Sequence[str]] = {
    "vqa-okvqa-val": _HUMAN_REPLIES,
    "vqa-textvqa-val": _HUMAN_REPLIES,
    "vqa-textvqa-val-ocr": _HUMAN_REPLIES,
    "vqa-vizwiz-val": _HUMAN_REPLIES,
    "vqa-vizwiz-test": _HUMAN_REPLIES,
    "vqa-chartqa-test": [row.answer for row in CHART_HUMAN_ROWS + CHART_AUGMENTED_ROWS],
    "vqa-chartqa-test-human": [row.answer for row in CHART_HUMAN_ROWS],
    "vqa-chartqa-test-augmented": [row.answer for row in CHART_AUGMENTED_ROWS],
    "vqa-docvqa-val": _DOCUMENT_REPLIES,
    "vqa-docvqa-test": _DOCUMENT_REPLIES,
    "vqa-ai2d-test": [row.answer for row in AI2D_ROWS],
    "vqa-infovqa-val": _DOCUMENT_REPLIES,
    "vqa-infovqa-test": _DOCUMENT_REPLIES,
    "vqa-gqa-testdev": [row.answer for row in [*GQA_ROWS, GQA_UNBALANCED]],
}
"""Task id -> replies in the order of its questions."""
