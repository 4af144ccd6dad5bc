"""TSV files: cells as pandas reads them, images, indices, prompts."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from internvl_chat.data.schema import BadRecordError
from internvl_chat.errors import ConfigError, DatasetError
from internvl_chat.evaluation.registry import TASKS, find_tasks
from internvl_chat.evaluation.scoring import require_data
from internvl_chat.evaluation.sources import EncodedImage, ImageFile
from internvl_chat.evaluation.task import RULES, DataRoot, Question, Rules
from internvl_chat.evaluation.tasks.tsv.by_path import task_of_tsv
from internvl_chat.evaluation.tasks.tsv.common import choice_prompt, yes_no_prompt
from internvl_chat.evaluation.tsv import (
    PANDAS_MISSING,
    Cell,
    literal,
    load_questions,
    pandas_column,
    read_table,
    texts_of,
)
from tests.support.evaluation.tsv import WRITERS, draw, write_mmmu, write_table

ATOMS = (
    *("", "NA", "None", "nan", "null", "3", "-1", "+4", "007", "3.0", ".5", "5.", "1e5", "inf"),
    *(" 3", "3 ", " 3.5 ", "True", "FALSE", "x", "a b", "0x10", "1_000", "1,000", "٣", "--1", "e5"),
)


@pytest.mark.parametrize(
    ("texts", "cells"),
    [
        (["3", "13"], [3, 13]),
        (["3", ""], [3.0, None]),
        (["3", "NA", "4"], [3.0, None, 4.0]),
        (["3", "3.5"], [3.0, 3.5]),
        (["007", "8"], [7, 8]),
        (["3", "x"], ["3", "x"]),
        (["True", "false"], [True, False]),
        (["True", "None"], [True, None]),
        (["None", "null", "n/a", "a"], [None, None, None, "a"]),
        (["none", "NONE"], ["none", "NONE"]),
        (["", ""], [None, None]),
        (["18446744073709551616"], ["18446744073709551616"]),
        ([], []),
    ],
)
def test_cells_by_column(texts: list[str], cells: list[Cell]) -> None:
    read = pandas_column(texts)
    assert read == cells
    assert [type(cell) for cell in read] == [type(cell) for cell in cells]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(ATOMS), min_size=1, max_size=4))
def test_cells_are_those_of_pandas(texts: list[str]) -> None:
    pandas = pytest.importorskip("pandas")
    table = "index\tx\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(texts))
    column = pandas.read_csv(io.StringIO(table), sep="\t")["x"].tolist()
    expected = [None if isinstance(one, float) and math.isnan(one) else one for one in column]
    read = pandas_column(texts)
    assert read == expected
    assert [type(one) for one in read] == [type(one) for one in expected]


def test_missing_values_are_pandas_own() -> None:
    assert len(PANDAS_MISSING) == 19


def test_literals() -> None:
    assert literal("['a', 'b']") == ["a", "b"]
    assert literal(3) == 3
    for text in ("geometry reasoning", "[1, 2", "__import__('os')", "a-b"):
        with pytest.raises(ValueError, match="no literal"):
            literal(text)
    assert texts_of("['24/7', 3.429]") == ["24/7", "3.429"]
    assert texts_of("[not a list]") == ["[not a list]"]
    assert texts_of(None) == ["nan"]


# -- tables --------------------------------------------------------------------------------------


def _load(path: Path, rules: Rules = "2024") -> list[Question]:
    return load_questions(path.parent, path.name, rules, choice_prompt)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_official_rules_read_texts(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    write_table(path, [{"question": "q", "A": "3", "B": "None"}, {"question": "q", "A": "4"}])
    assert [row["A"] for row in read_table(path, "2024").rows] == [3, 4]
    assert [row["B"] for row in read_table(path, "later").rows] == [None, None]
    official = read_table(path, "official").rows
    assert [(row["A"], row["B"], row["index"]) for row in official] == [
        ("3", "None", 0),
        ("4", None, 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question\timage\nq\tx\n", 'has no column "index". It has question, image.'),
        ("index\timage\n1\tx\n", 'has no column "question"'),
        ("index\tquestion\timage\n", "has no rows"),
        ("index\tquestion\timage\n1\tq\tx\n1\tq\tx\n", "row 1 has index 1 again"),
        ("index\tquestion\timage\n1\tq\t\n", "no row has an image"),
        ("index\tquestion\n1\tq\n", "no row has an image"),
        ("index\tquestion\timage\n1\tq\tx\ty\n", "more cells than the header"),
    ],
)
def test_malformed_tables(tmp_path: Path, text: str, message: str) -> None:
    path = _write(tmp_path / "x.tsv", text)
    with pytest.raises(DatasetError, match=r"x\.tsv") as caught:
        _load(path)
    assert message in str(caught.value)


def test_a_table_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes("index\tquestion\timage\n1\tq\u00fc\tx\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"x\.tsv: is no UTF-8 .* Re-encode the file"):
        _load(tmp_path / "x.tsv")
    (tmp_path / "x.tsv").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"x\.tsv: is empty"):
        _load(tmp_path / "x.tsv")


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"MMStar\.tsv: cannot be read"):
        TASKS["MMStar"].load(DataRoot(folder=tmp_path, lmu_data=tmp_path), "2024")


def test_indices_are_integers_if_all_are(tmp_path: Path) -> None:
    image = draw(0)
    path = _write(tmp_path / "x.tsv", f"index\tquestion\timage\n007\tq\t{image}\n8\tq\t7\n")
    assert [one.id for one in _load(path)] == ["7", "8"]
    path = _write(tmp_path / "y.tsv", f"index\tquestion\timage\n007\tq\t{image}\na\tq\t007\n")
    assert [one.id for one in _load(path)] == ["007", "a"]


# -- images --------------------------------------------------------------------------------------


def test_images_are_shared_by_reference(tmp_path: Path) -> None:
    path = tmp_path / "Any.tsv"
    cells = [draw(0), "0", "1", "4", "3", "nowhere", "[]"]
    write_table(path, [{"question": "q", "image": cell} for cell in cells])
    images = [one.images[0] for one in _load(path)]
    sizes = [image.open().size for image in images[:3]]
    assert sizes == [(20, 14)] * 3
    for image in images[3:]:
        with pytest.raises(BadRecordError):
            image.open()
    assert [image.label for image in images[:2]] == ["Any/0.jpg", "Any/1.jpg"]
    assert [one.images[0].label for one in _load(path, "later")[:2]] == ["Any/0.png", "Any/1.png"]


def test_images_of_2024_have_been_through_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "Any.tsv"
    write_table(path, [{"question": "q", "image": draw(5)}])
    pixels: dict[str, Image.Image] = {}
    for rules in RULES:
        source = _load(path, rules)[0].images[0]
        assert isinstance(source, EncodedImage)
        assert source.jpeg_quality == (75 if rules == "2024" else None)
        pixels[rules] = source.open()
    assert pixels["later"].tobytes() == pixels["official"].tobytes()
    assert pixels["2024"].tobytes() != pixels["later"].tobytes()


def test_lists_of_images_show_the_first(tmp_path: Path) -> None:
    write_mmmu(tmp_path)
    for rules, folder in (("2024", "MMMU"), ("later", "MMMU_DEV_VAL")):
        questions = TASKS["MMMU_DEV_VAL"].load(DataRoot(folder=tmp_path, lmu_data=tmp_path), rules)
        assert len(questions[7].images) == 1
        image = questions[7].images[0]
        assert isinstance(image, EncodedImage)
        assert (image.label, image.jpeg_quality) == (f"{folder}/Art_7_1.png", None)
        assert image.open().size == (27, 14)
        single = "0.jpg" if rules == "2024" else "Art_0_1.jpg"
        assert questions[0].images[0].label == f"{folder}/{single}"


def test_a_list_of_one_image_is_that_image(tmp_path: Path) -> None:
    path = tmp_path / "Any.tsv"
    write_table(path, [{"question": "q", "image": str([draw(5)]), "image_path": "['a.png']"}])
    labels = {rules: _load(path, rules)[0].images[0].label for rules in ("2024", "later")}
    assert labels == {"2024": "Any/0.jpg", "later": "Any/a.png"}


def test_image_modes_on_which_the_original_crashed(tmp_path: Path) -> None:
    import base64

    cells = []
    for mode in ("LA", "I;16", "CMYK", "P", "RGBA", "L"):
        buffer = io.BytesIO()
        Image.new(mode, (30, 20)).save(buffer, format="JPEG" if mode == "CMYK" else "PNG")
        cells.append(base64.b64encode(buffer.getvalue()).decode())
    path = tmp_path / "Any.tsv"
    write_table(path, [{"question": "q", "image": cell} for cell in cells])
    for rules in RULES:
        assert [one.images[0].open().mode for one in _load(path, rules)] == ["RGB"] * 6


def test_tables_with_paths(tmp_path: Path) -> None:
    folder = tmp_path / "images/Big"
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(folder / "a.png")
    text = f"index\tquestion\timage_path\n0\tq\ta.png\n1\tq\t{folder / 'a.png'}\n"
    _write(tmp_path / "Big_local.tsv", text)
    questions = load_questions(tmp_path, "Big.tsv", "2024", choice_prompt)
    assert [one.images[0].open().size for one in questions] == [(9, 8), (9, 8)]
    assert isinstance(questions[0].images[0], ImageFile)
    assert questions[0].images[0].label == "Big/a.png"


# -- prompts -------------------------------------------------------------------------------------

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "Q?", "A": "x", "C": 3.0}, f"Q?\nA. x\nC. 3.0\n{LETTER}"),
        ({"hint": "H", "question": "Q?", "A": "x"}, f"H\nQ?\nA. x\n{LETTER}"),
        ({"hint": None, "question": "Q?"}, "Q?\nAnswer the question directly."),
        ({"question": "Q?", "A": "红"}, "Q?\nA. 红\n请直接回答选项字母。"),
        ({"question": "谁？"}, "谁？\n请直接回答问题。"),
        ({"question": "さくら?", "A": "か"}, f"さくら?\nA. か\n{LETTER}"),
        ({"question": None, "A": "x"}, f"\nA. x\n{LETTER}"),
        ({"question": 7, "A": True}, f"7\nA. True\n{LETTER}"),
    ],
)
def test_choice_prompts(row: dict[str, Cell], prompt: str) -> None:
    assert choice_prompt(row) == prompt


SHORT = "Answer the question using a single word or phrase."


def test_prompts_by_task(tmp_path: Path) -> None:
    shown = {}
    for name, write in WRITERS.items():
        write(tmp_path)
        task = TASKS[name]
        for rules in RULES:
            questions = task.load(DataRoot(folder=tmp_path, lmu_data=tmp_path), rules)
            shown[name] = questions[0].prompt
            assert "image" not in questions[0].record
            assert questions[0].record["question"]
        limits = [task.generation_under(rules).max_new_tokens for rules in RULES]
        assert limits == [1024, 4096, 1024]
        assert task.generation.min_new_tokens is None
    options = "\nA. circle\nB. square\nC. triangle\nD. star\n"
    assert shown == {
        "MathVista_MINI": "Hint: Please answer the question.\nQuestion: How much is it?",
        "HallusionBench": f"Is the statement right? Please answer yes or no. {SHORT}",
        "MMStar": f"Which shape is number 0?{options}{LETTER}",
        "OCRBench": f"what is written in the image?\n{SHORT}",
        "MMMU_DEV_VAL": f"Which shape is number 0? <image 1>{options}{LETTER}",
        "RealWorldQA": f"Which shape is number 0?{options}{LETTER}",
        "MMVet": "What is number 0?",
        "LLaVABench": "What happens in 0?\nAnswer this question in detail.",
    }


# -- any other file ------------------------------------------------------------------------------


def _task_of(tmp_path: Path, name: str, rows: list[dict[str, Cell]]) -> tuple[str, str, str]:
    path = tmp_path / f"{name}.tsv"
    write_table(path, rows)
    task = task_of_tsv(path)
    question = task.load(DataRoot(folder=Path("/"), lmu_data=Path("/")), "2024")[0]
    assert task.data[0].path == str(path)
    return task.id, task.metric, question.prompt


def test_what_a_file_is_told_by_its_columns(tmp_path: Path) -> None:
    choice = [{"question": "Q?", "A": "x", "B": "y", "answer": "B"}]
    assert _task_of(tmp_path, "Mine", choice) == ("Mine", "accuracy", f"Q?\nA. x\nB. y\n{LETTER}")
    yes_no = [{"question": "Q?", "answer": "yes"}, {"question": "Q?", "answer": "No"}]
    asked = f"Q? Please answer yes or no. {SHORT}"
    assert _task_of(tmp_path, "YN", yes_no) == ("YN", "accuracy of yes and no", asked)
    assert yes_no_prompt({"question": "Q? Please answer yes or no."}).count("yes or no") == 1
    short = [{"question": "Q?", "answer": "['a', 'b']"}]
    assert _task_of(tmp_path, "Short", short) == ("Short", "exact match", f"Q?\n{SHORT}")
    with pytest.raises(DatasetError, match='has no column "answer"'):
        _task_of(tmp_path, "None", [{"question": "Q?"}])


def test_a_known_name_elsewhere(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        write(tmp_path)
        task = task_of_tsv(tmp_path / f"{name}.tsv")
        assert (task.id, task.metric) == (name, TASKS[name].metric)
        root = DataRoot(folder=Path("/nowhere"), lmu_data=Path("/nowhere"))
        assert task.load(root, "2024")[0].record["question"]
        assert [one.data[0].path for one in find_tasks([f"{tmp_path}/{name}.tsv"])] == [
            str(tmp_path / f"{name}.tsv")
        ]
    with pytest.raises(DatasetError, match="cannot be read"):
        find_tasks(["nowhere/Mine.tsv"])


def test_the_local_table_of_the_toolkit_counts_as_present(tmp_path: Path) -> None:
    root = DataRoot(folder=tmp_path, lmu_data=tmp_path)
    with pytest.raises(ConfigError, match=r"MMStar\.tsv"):
        require_data([TASKS["MMStar"]], root, with_folders=True)
    (tmp_path / "MMStar_local.tsv").touch()
    require_data([TASKS["MMStar"]], root, with_folders=True)
