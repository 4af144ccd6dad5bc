"""MMBench and CCBench: multiple choice with rotated options (https://arxiv.org/abs/2307.06281)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.joining import add_answer
from internvl_chat.evaluation.metrics.letters import listed, named_letter, read_letter
from internvl_chat.evaluation.metrics.mmbench import base_of, circular_verdicts, share
from internvl_chat.evaluation.sources import EncodedImage, read_tsv
from internvl_chat.evaluation.spreadsheets import import_openpyxl, read_sheet
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
from internvl_chat.evaluation.tasks.wording import LETTER_CN, LETTER_EN, NAMED_OPTION
from internvl_chat.evaluation.tsv import LONGEST_REFERENCE

LETTERS = ("A", "B", "C", "D", "E")

_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""What a sheet cannot hold."""


def load(root: DataRoot, rules: Rules, *, path: str, suffix: str) -> list[Question]:
    """A question for each row, rotations included.

    Under 2024 cells are what pandas makes of them: an option ``None`` or ``NA`` is missing, and a
    column of numbers with gaps becomes decimal (``3.0``). Officially they are the text they are.
    """
    file = root.folder / path
    rows = list(_read_as_text(file) if rules == "official" else _read_as_pandas(file))
    if not rows:
        raise DatasetError("has no rows", where=str(file))
    absent = [name for name in ("index", "question", "image") if name not in rows[0]]
    if absent:
        names = ", ".join(rows[0])
        raise DatasetError(
            f"has no column {', '.join(absent)}", where=str(file), fix=f"Its columns are {names}."
        )
    images = {_text(row["index"]): _text(row.pop("image")) for row in rows}
    if len(images) < len(rows):
        raise DatasetError(
            f"{len(rows) - len(images)} rows have the index of another",
            where=str(file),
            fix="Answers are joined on it: make them unique.",
        )
    return [_question(row, images, file, suffix) for row in rows]


def _read_as_text(path: Path) -> Iterator[dict[str, Any]]:
    for row, _ in read_tsv(path):
        yield {name: value or None for name, value in row.items()}


def _read_as_pandas(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pandas
    except ImportError as err:
        raise ConfigError(
            "cells are read by pandas, as in 2024",
            where=str(path),
            fix='pip install "internvl-chat[eval]", or add --rules official.',
        ) from err
    try:
        table = pandas.read_csv(path, sep="\t")  # by name: types are inferred chunk by chunk
    except OSError as err:
        raise DatasetError(f"cannot be read ({err.strerror})", where=str(path)) from err
    except ValueError as err:  # so are errors of decoding and of parsing
        raise DatasetError(f"is no table in UTF-8 ({err})", where=str(path)) from err
    for row in table.astype(object).to_dict("records"):
        yield {str(name): None if pandas.isna(value) else value for name, value in row.items()}


def _question(row: dict[str, Any], images: Mapping[str, str], file: Path, suffix: str) -> Question:
    identity = _text(row["index"])
    encoded = images[identity]
    if len(encoded) <= LONGEST_REFERENCE:
        encoded = images.get(encoded, encoded)
    options = {one: _text(row[one]) for one in LETTERS if row.get(one) is not None}
    hint = [] if row.get("hint") is None else [_text(row["hint"])]
    return Question(
        id=identity,
        prompt="\n".join([*hint, _text(row["question"]), *listed(options), suffix]),
        images=(EncodedImage(encoded, f"{file}, index {identity}"),),
        record={"row": {name: _plain(value) for name, value in row.items()}, "options": options},
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _plain(value: Any) -> str | int | float | bool | None:
    """A cell as a JSON value; numpy's numbers become Python's."""
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, str | int | float | bool | None) else str(plain)


def score(given: ScoreInput, *, task: str) -> Score:
    """Circular accuracy where the file has answers; of the rows that have one."""
    read = named_letter if given.rules == "official" else read_letter
    right = {
        one.id: read(given.answers[one.id], one.record["options"])
        == _text(one.record["row"]["answer"])
        for one in given.questions
        if one.record["row"].get("answer") is not None
    }
    if not right:
        note = "The data has no answers: hand the xlsx file to the MMBench server."
        return Score(metrics={"accuracy": None}, printed="", per_sample={}, notes=(note,))
    verdicts = circular_verdicts(right.items())
    groups: dict[str, list[bool]] = {}
    seen = set()
    for one in given.questions:
        base = base_of(one.id)
        if one.id not in right or base in seen:
            continue
        seen.add(base)
        for column in ("l2-category", "category"):
            name = one.record["row"].get(column)
            if name is not None:
                groups.setdefault(f"{column}/{name}", []).append(verdicts[base])
    accuracy = share(list(verdicts.values()))
    empty = sum(not given.answers[identity].strip() for identity in right)
    notes = ["Scored here; the published number is the server's."]
    if empty:
        notes.append(f"{empty} empty answers, at which the original stops: wrong.")
    return Score(
        metrics={
            "accuracy": accuracy,
            "row_accuracy": share(list(right.values())),
            **{name: share(groups[name]) for name in sorted(groups)},
        },
        printed=f"{task}: {100 * (accuracy or 0):.1f}\n",
        per_sample={identity: float(verdicts[base_of(identity)]) for identity in right},
        notes=tuple(notes),
    )


def export(
    given: ExportInput, *, key: str, dropped: Sequence[str], position: int
) -> Mapping[str, bytes]:
    """``{key}_{stamp}.xlsx``: the table without some columns, with the letters that were read."""
    workbook = import_openpyxl().Workbook()
    sheet = workbook.active
    sheet.title = "Sheet1"
    for number, one in enumerate(given.questions, start=1):
        row = {name: cell for name, cell in one.record["row"].items() if name not in dropped}
        names, cells = list(row), list(row.values())
        place = min(position, len(names))
        names.insert(place, "prediction")
        cells.insert(place, read_letter(given.answers[one.id], one.record["options"]))
        if number == 1:
            _write_row(sheet, 1, names)
        _write_row(sheet, number + 1, cells)
    content = io.BytesIO()
    workbook.save(content)
    return {f"{key}_{given.stamp}.xlsx": content.getvalue()}


def _write_row(sheet: Any, row: int, values: Sequence[Any]) -> None:
    for column, value in enumerate(values, start=1):
        if value is None:
            continue
        cell = sheet.cell(row=row, column=column)
        if isinstance(value, str):
            cell.value = _UNWRITABLE.sub("", value)
            cell.data_type = "s"  # "=1+1" is an answer, no formula
        else:
            cell.value = value


def read_answers(files: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """The column ``prediction`` of such sheets, by ``index``."""
    answers: dict[str, str] = {}
    for path in files:
        header, *rows = read_sheet(path) or [[]]
        absent = [name for name in ("index", "prediction") if name not in header]
        if absent:
            raise DatasetError(
                f"has no column {', '.join(absent)}",
                where=str(path),
                fix=f"It has {', '.join(map(str, header)) or 'nothing'}.",
            )
        index, prediction = header.index("index"), header.index("prediction")
        for number, cells in enumerate(rows, start=2):
            row = cells + [None] * (len(header) - len(cells))
            if row[index] is not None:
                where = f"{path}, row {number}"
                add_answer(answers, _text(row[index]), _text(row[prediction]), where)
    return answers


def _task(
    name: str,
    key: str,
    suffix: str,
    published: str,
    *,
    title: str,
    file: str = "",
    dropped: Sequence[str] = (
        "hint",
        "category",
        "source",
        "image",
        "comment",
        "l2-category",
    ),
    position: int = 6,
) -> TaskSpec:
    path = f"data/mmbench/{file or key}.tsv"
    return TaskSpec(
        id=name,
        suite="internvl",
        title=title,
        data=(
            DataFile(
                path=path,
                format=(
                    "TSV: index, question, hint, A, B, C, D, answer (absent in test), category, "
                    "image (base64), source, l2-category, comment, split; a rotation of the "
                    "options is a row with index + 1000000"
                ),
            ),
        ),
        load=partial(load, path=path, suffix=suffix),
        generation=Generation(max_new_tokens=100),
        metric="circular accuracy",
        score=partial(score, task=name),
        rules=("2024", "official"),
        rule_differences={
            "official": "cells are the text that they are: options `None` or `NA` are there, `3` "
            f"does not become `3.0`; {NAMED_OPTION}"
        },
        export=partial(export, key=key, dropped=dropped, position=position),
        read_answers=read_answers,
        published=published,
        source="https://mmbench.opencompass.org.cn/mmbench-submission",
    )


MMBENCH = (
    _task(
        "mmbench-dev-en",
        "mmbench_dev_20230712",
        LETTER_EN,
        "83.4",
        title="MMBench dev, English",
    ),
    _task(
        "mmbench-test-en",
        "mmbench_test_en_20231003",
        LETTER_EN,
        "83.8",
        title="MMBench test, English",
    ),
    _task(
        "mmbench-dev-cn",
        "mmbench_dev_cn_20231003",
        LETTER_CN,
        "81.6",
        title="MMBench dev, Chinese",
    ),
    _task(
        "mmbench-test-cn",
        "mmbench_test_cn_20231003",
        LETTER_CN,
        "82.0",
        title="MMBench test, Chinese",
    ),
    _task(
        "ccbench-dev",
        "ccbench_dev_cn",
        LETTER_CN,
        "55.9",
        title="CCBench",
        file="CCBench_legacy",
        dropped=("category", "image"),
        position=8,
    ),
)
