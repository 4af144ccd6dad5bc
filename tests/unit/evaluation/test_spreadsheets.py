"""Tables of answers: what is written, and what comes back."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from internvl_chat.errors import DatasetError
from internvl_chat.evaluation.spreadsheets import (
    excel_column,
    read_columns,
    read_predictions,
    split_judgement,
    with_judgement,
    write_xlsx,
)
from internvl_chat.evaluation.task import Question

QUESTIONS = [Question(id=str(number), prompt="q") for number in range(12)]
AS_THEY_ARE = ["A", " B. ", "=1+1", "日本\n2", "http://a.b/c", "_x000D_ stays", "#REF!", "x" * 100]


def _rows(answers: list[Any]) -> bytes:
    rows = [{"index": n, "prediction": answer} for n, answer in enumerate(answers)]
    return write_xlsx(("index", "prediction"), rows)


def _read(tmp_path: Path, answers: list[Any], **how: Any) -> list[str]:
    path = tmp_path / "m_MMStar.xlsx"
    path.write_bytes(_rows(answers))
    return list(read_predictions([path], QUESTIONS, **how).values())


def test_texts_come_back(tmp_path: Path) -> None:
    assert _read(tmp_path, AS_THEY_ARE) == AS_THEY_ARE


def test_texts_that_do_not_come_back(tmp_path: Path) -> None:
    given = ["None", "NA", "", "a\rb", "x\x07", "y" * 40_000]
    read = _read(tmp_path, given)
    assert read == ["nan", "nan", "nan", "a_x000D_b", "x_x0007_", "y" * 32_767]


def test_a_column_of_numbers_comes_back_as_numbers(tmp_path: Path) -> None:
    assert _read(tmp_path, ["14.0", "007", "3"]) == ["14.0", "7.0", "3.0"]
    assert _read(tmp_path, ["14.0", "007", "3"], whole_numbers=True) == ["14", "7", "3"]
    assert _read(tmp_path, ["14", "007", "x"]) == ["14", "007", "x"]
    assert _read(tmp_path, ["14", "007"]) == ["14", "7"]


def test_formulas_of_the_original_come_back_as_what_was_stored(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (("index", "prediction"), (0, "=1+1"), (1, "B")):
        book.active.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    # The original's writer stores 0 as the value of every formula.
    import zipfile

    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name).replace(b"<f>1+1</f><v />", b"<f>1+1</f><v>0</v>")
            new.writestr(name, data.replace(b"<f>1+1</f><v></v>", b"<f>1+1</f><v>0</v>"))
    assert read_predictions([path], QUESTIONS) == {"0": "0", "1": "B"}


def test_columns_are_those_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    columns: list[list[Any]] = [
        ["a", "b", None],
        [1, 2, 3],
        [1, None, 3],
        [1.5, 2, 3],
        ["1", "2.0", "x"],
        ["1", "2", None],
        [True, False, True],
        ["True", "False", "NA"],
        ["None", "nan", "n/a"],
        ["a", 3, 2.5],
        [3.0, 4.0, 5.0],
    ]
    for column in columns:
        path = tmp_path / "a.xlsx"
        path.write_bytes(_rows(column))
        frame = pandas.read_excel(path)["prediction"].tolist()
        want = [None if isinstance(one, float) and math.isnan(one) else one for one in frame]
        read = read_columns(path)["prediction"]
        assert read == want
        assert [type(one) for one in read] == [type(one) for one in want]
    assert excel_column([]) == []


def test_other_formats(tmp_path: Path) -> None:
    rows = [{"index": 0, "prediction": "B"}, {"index": 1, "prediction": "None"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    by_column = {"index": {"0": 0, "1": 1}, "prediction": {"0": "B", "1": "None"}}
    (tmp_path / "b.json").write_text(json.dumps(by_column))
    (tmp_path / "c.json").write_text('{"0": "B", "1": "None"}')
    for name in ("a.json", "a.jsonl", "b.json", "c.json"):
        assert read_predictions([tmp_path / name], QUESTIONS) == {"0": "B", "1": "None"}
    (tmp_path / "a.tsv").write_text('"index"\t"prediction"\n"0"\t"B"\n"1"\t"None"\n')
    assert read_predictions([tmp_path / "a.tsv"], QUESTIONS) == {"0": "B", "1": "nan"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"no zip", "is no xlsx"),
        ("a.csv", b"", "no table of answers. Want .xlsx, .tsv, .json, .jsonl."),
        ("a.json", b'[{"index": 0}]', 'has no column "prediction". It has index.'),
        ("a.json", b"[3]", "record 0: is no object"),
        ("a.json", b"3", "is no table of answers"),
        (
            "a.json",
            b'{"0": "B", "99": "C"}',
            "1 rows belong to no question, the first has index 99",
        ),
        ("a.json", b"\xff", "is no UTF-8"),
    ],
)
def test_unfit_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_predictions([path], QUESTIONS)
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_predictions([tmp_path / "a.xlsx"], QUESTIONS)


def test_later_files_go_first_and_need_not_be_complete(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"0": "A", "1": "B"}')
    (tmp_path / "b.json").write_text('{"1": "C"}')
    read = read_predictions([tmp_path / "a.json", tmp_path / "b.json"], QUESTIONS)
    assert read == {"0": "A", "1": "C"}


def test_judged_answers() -> None:
    assert split_judgement(with_judgement("an answer", {"score": 0.5})) == (
        "an answer",
        {"score": 0.5},
    )
    assert split_judgement("plain") == ("plain", {})
