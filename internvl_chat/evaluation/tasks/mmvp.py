"""MMVP: pairs of images that CLIP takes for the same (https://arxiv.org/abs/2401.06209)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.joining import answers_by_id, json_lines
from internvl_chat.evaluation.metrics.letters import lettered, listed, named_letter, read_letter
from internvl_chat.evaluation.sources import ImageFile, read_jsonl, read_text, require
from internvl_chat.evaluation.task import (
    DataFile,
    DataRoot,
    ExportInput,
    Generation,
    Question,
    Rules,
    Score,
    ScoreInput,
    TaskSpec,
)
from internvl_chat.evaluation.tasks.wording import LETTER_EN, NAMED_OPTION

QUESTIONS = "data/MMVP/Questions.csv"
IMAGES = "data/MMVP/MMVP Images"
INDEX_COLUMNS = ("lndex", "Index", "index")
"""The first, with a lower-case L, is that of the published file."""


def load(root: DataRoot, rules: Rules) -> list[Question]:
    """Questions in the file's order; the first two are a pair, and so on."""
    questions = []
    for row, where in _rows(root.folder / QUESTIONS):
        column = next((name for name in INDEX_COLUMNS if name in row), INDEX_COLUMNS[1])
        index = str(require(row, column, where)).strip()
        options = _options(require(row, "Options", where))
        text = require(row, "Question", where)
        image = f"{IMAGES}/{index}.jpg"
        questions.append(
            Question(
                id=index,
                prompt="\n".join([text, *listed(options), LETTER_EN]),
                images=(ImageFile(str(root.folder / image), shown=image),),
                record={
                    "text": text,
                    "options": options,
                    "truth": _truth(require(row, "Correct Answer", where), where),
                },
            )
        )
    return questions


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a CSV with a header, with their place."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if reader.fieldnames is None:
        raise DatasetError("is empty", where=str(path))
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if None in row or None in row.values():
            raise DatasetError(f"has not the header's {len(reader.fieldnames)} cells", where=where)
        yield row, where


def _options(cell: str) -> dict[str, str]:
    """``(a) Open (b) Shut``: cut at each ``(b)``, as the original does."""
    first, *others = cell.split("(b)")
    return lettered(text.strip() for text in (first.replace("(a)", ""), *others))


def _truth(cell: str, where: str) -> str:
    match = re.fullmatch(r"\(([a-d])\)", cell.strip())
    if match is None:
        raise DatasetError(f'"Correct Answer" is {cell!r}, want (a) or (b)', where=where)
    return match[1].upper()


def score(given: ScoreInput) -> Score:
    """Share of pairs with two right answers; a last question without partner is left out."""
    read = named_letter if given.rules == "official" else read_letter
    right = [
        read(given.answers[one.id], one.record["options"]) == one.record["truth"]
        for one in given.questions
    ]
    num_pairs = len(right) // 2
    pairs = [right[2 * number] and right[2 * number + 1] for number in range(num_pairs)]
    accuracy = sum(pairs) / num_pairs if num_pairs else None
    values = [float(hit) for hit in pairs for _ in range(2)] + [0.0] * (len(right) % 2)
    num_empty = sum(not given.answers[one.id].strip() for one in given.questions)
    notes = [f"{num_empty} empty answers count as wrong"] if num_empty else []
    if len(right) % 2:
        notes.append(f"question {given.questions[-1].id} has no partner and is left out")
    return Score(
        metrics={"accuracy": accuracy},
        printed=f"Evaluating MMVP ...\nThe accuracy is {accuracy}\n",
        per_sample={one.id: value for one, value in zip(given.questions, values, strict=True)},
        notes=tuple(notes),
    )


def export(given: ExportInput) -> Mapping[str, str]:
    """``MMVP_{stamp}.jsonl``, with letters as answers."""
    records = [
        {
            "question": one.prompt,
            "answer": read_letter(given.answers[one.id], one.record["options"]),
            "gt_answers": one.record["truth"],
            "data_id": one.id,
        }
        for one in given.questions
    ]
    return {f"MMVP_{given.stamp}.jsonl": json_lines(records)}


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Letters of such a file, by ``data_id``."""
    records = (row for path in files for row in read_jsonl(path))
    return answers_by_id(records, questions, id_field="data_id", answer_field="answer")


MMVP = TaskSpec(
    id="mmvp",
    suite="internvl",
    title="MMVP",
    data=(
        DataFile(
            path=QUESTIONS,
            format="CSV: lndex or Index, Question, Options ((a) … (b) …), Correct Answer ((a))",
        ),
        DataFile(path=IMAGES, format="{index}.jpg", is_folder=True),
    ),
    load=load,
    generation=Generation(max_new_tokens=100),
    metric="pairs of letters",
    score=score,
    rules=("2024", "official"),
    rule_differences={"official": NAMED_OPTION},
    export=export,
    read_answers=read_answers,
    published="The accuracy is 0.5866666666666667",
    source="https://github.com/tsb0601/MMVP",
)
