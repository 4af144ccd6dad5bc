"""MM-Vet and LLaVA-Bench with invented questions and drawn images, and a judge with set replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")


def draw(path: Path, shade: int) -> None:
    """A small image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(path)


MMVET = (
    ("How many boats are moored?", "3<OR>three", ["ocr", "math"]),
    ("Which fruits?", "apple<AND>pear", ["rec"]),
    ("What is the sum?", "12", ["ocr", "math"]),
    ("Who painted it?", "nobody", ["rec", "know", "gen"]),
)


def write_mmvet(root: Path, *, has_references: bool = False) -> None:
    """Four questions, with the release's references if wanted."""
    folder = root / "data/mm-vet"
    write_lines(
        folder / "llava-mm-vet.jsonl",
        (
            {"question_id": number, "image": f"v1_{number}.png", "text": text}
            for number, (text, _, _) in enumerate(MMVET)
        ),
    )
    for number in range(len(MMVET)):
        draw(folder / f"images/v1_{number}.png", number)
    if has_references:
        references = {
            f"v1_{number}": {
                "imagename": f"v1_{number}.png",
                "question": text,
                "answer": answer,
                "capability": capabilities,
            }
            for number, (text, answer, capabilities) in enumerate(MMVET)
        }
        (folder / "mm-vet.json").write_text(json.dumps(references), "utf-8")


LLAVA = (
    ("001.jpg", "conv", "Which season is it?"),
    ("001.jpg", "detail", "Describe the lake."),
    ("002.jpg", "complex", "Why is the boy glad?"),
    ("002.jpg", "conv", "What is his coat's colour?"),
)


def write_llava_bench(root: Path) -> None:
    """Four questions about two images."""
    folder = root / "data/llava-bench-in-the-wild"
    write_lines(
        folder / "questions.jsonl",
        (
            {"question_id": number, "image": image, "category": category, "text": text}
            for number, (image, category, text) in enumerate(LLAVA)
        ),
    )
    write_lines(
        folder / "context.jsonl",
        [
            {"id": "001", "image": "001.jpg", "caption": "A lake with a jetty."},
            {"id": "002", "image": "002.jpg", "caption": ["A boy.", "He has a kite."]},
        ],
    )
    write_lines(
        folder / "answers_gpt4.jsonl",
        (
            {"question_id": number, "text": f"Reference {number}.", "answer_id": f"x{number}"}
            for number in range(len(LLAVA))
        ),
    )
    draw(folder / "images/001.jpg", 1)
    draw(folder / "images/002.jpg", 2)


WRITERS: dict[str, Callable[[Path], None]] = {
    "mmvet": write_mmvet,
    "llava-bench": write_llava_bench,
}


class ScriptedJudge:
    """Gives the replies written down for a question, one after the other, the last one for good.

    Args:
        replies: by the field ``question``.
    """

    name = "scripted"

    def __init__(self, replies: Mapping[str, list[str | None]]) -> None:
        self._replies = {question: list(texts) for question, texts in replies.items()}
        self.asked: list[tuple[str, dict[str, str], float, int]] = []
        """Key, fields, temperature, max_tokens of each request."""

    def ask(
        self, key: str, fields: Mapping[str, str], *, temperature: float, max_tokens: int
    ) -> str | None:
        """The next reply."""
        self.asked.append((key, dict(fields), temperature, max_tokens))
        texts = self._replies[fields["question"]]
        return texts.pop(0) if len(texts) > 1 else texts[0]
