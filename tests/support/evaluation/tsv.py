"""The TSV family in its layout: files below ``LMUData``, invented rows, drawn images."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from internvl_chat.evaluation.task import DataRoot, Rules, Score, ScoreInput, TaskSpec

COLOURS = ("red", "green", "blue", "orange", "black", "purple")
SHAPES = {"A": "circle", "B": "square", "C": "triangle", "D": "star"}


def draw(number: int) -> str:
    """A coloured rectangle of its own size as PNG, base64."""
    image = Image.new("RGB", (20 + number, 14), "white")
    ImageDraw.Draw(image).rectangle((2, 2, 9 + number % 5, 10), fill=COLOURS[number % 6])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A TSV; a row without ``image`` gets a drawn one, every third the second's by its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(["index", *(name for row in rows for name in row), "image"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for number, row in enumerate(rows):
            image = rows[1].get("index", 1) if number % 3 == 2 else draw(number)
            full = {"index": number, "image": image, **row}
            writer.writerow(["" if full.get(name) is None else full[name] for name in columns])


def write_mathvista(root: Path) -> None:
    """``MathVista_MINI.tsv``: choices, integers, floats, a list, a text."""
    hint = "Hint: Please answer the question.\nQuestion: How much is it?"
    choices = "['3/11', '8/11', '6/11', '3/5']"
    geometry, figure, words = (
        "geometry problem solving",
        "figure question answering",
        "math word problem",
    )
    rows = [
        ("multi_choice", "text", "8/11", "B", "['geometry reasoning','arithmetic reasoning']"),
        ("multi_choice", "text", "8/11", "B", "['geometry reasoning']"),
        ("multi_choice", "text", "8/11", "B", "['statistical reasoning']"),
        ("free_form", "integer", "14", None, "['arithmetic reasoning']"),
        ("free_form", "integer", "14", None, "['arithmetic reasoning']"),
        ("free_form", "integer", "0", None, "['arithmetic reasoning', 'logical reasoning']"),
        ("free_form", "float", "1.50", None, "['statistical reasoning']"),
        ("free_form", "float", "0.6", None, "logical reasoning"),
        ("free_form", "list", "[2007, 2008]", None, "['statistical reasoning']"),
        ("free_form", "text", "cat", None, "['logical reasoning']"),
    ]
    tasks = [geometry, geometry, figure, words, words, words, figure, figure, figure, figure]
    write_table(
        root / "MathVista_MINI.tsv",
        [
            {
                "question": hint,
                "answer": answer,
                "question_type": kind,
                "answer_type": answer_type,
                "choices": choices if kind == "multi_choice" else "[]",
                "answer_option": option,
                "precision": 1 if answer_type == "float" else None,
                "task": task,
                "skills": skills,
                "category": "math",
            }
            for (kind, answer_type, answer, option, skills), task in zip(rows, tasks, strict=True)
        ],
    )


def write_hallusionbench(root: Path) -> None:
    """``HallusionBench.tsv``: two categories, three l2-categories, a row without image."""
    rows = [
        (f"{l2}_1_{number}_{figure}_{question}", l2, "Yes" if (figure + question) % 2 else "No")
        for l2 in ("VD_math", "VD_ocr", "VS_map")
        for number in (0,)
        for figure in (0, 1)
        for question in (0, 1)
    ]
    table: list[dict[str, Any]] = [
        {
            "index": index,
            "category": l2[:2],
            "l2-category": l2,
            "question": "Is the statement right?",
            "answer": gold,
        }
        for index, l2, gold in rows
    ]
    table.append({**table[0], "index": "VS_map_0_0_0_0", "image": ""})
    write_table(root / "HallusionBench.tsv", table)


def _shape_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Which shape is number {number}?", **SHAPES, "answer": "ABCD"[number % 4]}
        for number in range(count)
    ]


def write_mmstar(root: Path) -> None:
    """``MMStar.tsv``: six categories, two rows each."""
    names = ("coarse perception", "fine-grained perception", "instance reasoning")
    categories = (*names, "logical reasoning", "math", "science & technology")
    rows = [
        {**row, "category": categories[number % 6]} for number, row in enumerate(_shape_rows(12))
    ]
    write_table(root / "MMStar.tsv", rows)


def write_realworldqa(root: Path) -> None:
    """``RealWorldQA.tsv``: no categories, a row that lost an option."""
    rows = _shape_rows(12)
    rows[5]["C"] = None
    write_table(root / "RealWorldQA.tsv", rows)


def write_mmmu(root: Path) -> None:
    """``MMMU_DEV_VAL.tsv``: two splits, open questions, an option ``None``, lists of images."""
    rows = _shape_rows(12)
    for number, row in enumerate(rows):
        validation = number < 8
        row |= {
            "id": f"{'validation' if validation else 'dev'}_Art_{number}",
            "question": f"{row['question']} <image 1>",
            "split": "validation" if validation else "dev",
            "l2-category": "Art" if number % 2 else "Physics",
            "category": "Art & Design" if number % 2 else "Science",
            "image_path": f"Art_{number}_1.jpg",
        }
    for number, gold in ((2, "treaty of rome"), (3, "B"), (6, "['24/7', '3.429']")):
        rows[number] |= {**dict.fromkeys("ABCD"), "answer": gold}
    rows[4]["A"] = "None"
    rows[7] |= {
        "image": str([draw(7), draw(8)]),
        "image_path": str(["Art_7_1.png", "Art_7_2.png"]),
    }
    write_table(root / "MMMU_DEV_VAL.tsv", rows)


def write_ocrbench(root: Path) -> None:
    """``OCRBench.tsv``: every category once, two of the first, one quoted text."""
    categories = (
        "Regular Text Recognition",
        "Irregular Text Recognition",
        "Artistic Text Recognition",
        "Handwriting Recognition",
        "Digit String Recognition",
        "Non-Semantic Text Recognition",
        "Scene Text-centric VQA",
        "Doc-oriented VQA",
        "Key Information Extraction",
        "Handwritten Mathematical Expression Recognition",
        "Regular Text Recognition",
        "Regular Text Recognition",
    )
    answers = ["['CENTRE']", "['bar', 'Baz']", "['a\\nb']", "['x']", "['12']", "['qwz']"]
    answers += ["['4 pm']", "['Total']", "['$3.50']", r"['\\frac {a} {b}']", "'abc'", "CENTRE"]
    write_table(
        root / "OCRBench.tsv",
        [
            {"question": "what is written in the image?", "answer": answer, "category": category}
            for answer, category in zip(answers, categories, strict=True)
        ],
    )


def write_mmvet(root: Path) -> None:
    """``MMVet.tsv``: single capabilities and combinations; nobody asks for ``spat``."""
    categories = ("rec", "ocr", "ocr,math", "rec,know,gen", "rec", "ocr,math", "rec,know,gen")
    write_table(
        root / "MMVet.tsv",
        [
            {"question": f"What is number {number}?", "answer": "12<OR>twelve", "category": name}
            for number, name in enumerate(categories)
        ],
    )


def write_llavabench(root: Path) -> None:
    """``LLaVABench.tsv``: two rows a category."""
    write_table(
        root / "LLaVABench.tsv",
        [
            {
                "question": f"What happens in {number}?",
                "category": category,
                "caption": f"['A lake {number}.', 'A jetty.']" if number == 1 else "A lake.",
                "gpt4_ans": "It is calm.",
            }
            for number, category in enumerate(("conv", "detail", "complex") * 2)
        ],
    )


WRITERS: dict[str, Callable[[Path], None]] = {
    "MathVista_MINI": write_mathvista,
    "HallusionBench": write_hallusionbench,
    "MMStar": write_mmstar,
    "OCRBench": write_ocrbench,
    "MMMU_DEV_VAL": write_mmmu,
    "RealWorldQA": write_realworldqa,
    "MMVet": write_mmvet,
    "LLaVABench": write_llavabench,
}


class ScriptedJudge:
    """A judge that replies by a function of key, fields and temperature, and keeps what it got."""

    name = "scripted"

    def __init__(self, reply: Callable[[str, Mapping[str, str], float], str | None]) -> None:
        self._reply = reply
        self.asked: list[tuple[str, Mapping[str, str], float, int]] = []

    def ask(
        self, key: str, fields: Mapping[str, str], *, temperature: float, max_tokens: int
    ) -> str | None:
        self.asked.append((key, fields, temperature, max_tokens))
        return self._reply(key, fields, temperature)


def score_answers(
    task: TaskSpec,
    lmu_data: Path,
    answers: Sequence[str] | Mapping[str, str],
    *,
    rules: Rules = "2024",
    judge: ScriptedJudge | None = None,
) -> Score:
    """Score answers to a task's questions, in the data's order or by id."""
    questions = task.load(DataRoot(folder=lmu_data, lmu_data=lmu_data), rules)
    if not isinstance(answers, Mapping):
        ids = [one.id for one in questions]
        answers = dict(zip(ids, answers, strict=True))
    assert task.score is not None
    return task.score(ScoreInput(questions=questions, answers=answers, rules=rules, judge=judge))
