"""Pure scorers of the TSV family: the specification's vectors, hand-computed cases, properties."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.evaluation.metrics.can_infer import can_infer
from internvl_chat.evaluation.metrics.llavabench_tsv import NO_MARKS, marks_table, read_marks
from internvl_chat.evaluation.metrics.mathvista import (
    MathItem,
    MathReading,
    check,
    prefetch,
    skill_table,
)
from internvl_chat.evaluation.metrics.mmvet import mark_tables, read_mark
from internvl_chat.evaluation.metrics.multiple_choice import (
    ChoiceItem,
    accuracy_table,
    draw,
    infer,
    render_options,
)
from internvl_chat.evaluation.metrics.ocrbench import FORMULAS, accepted_texts, is_hit, totals
from internvl_chat.evaluation.metrics.tables import ScoreTable, csv_table, print_table
from internvl_chat.evaluation.metrics.yes_no import (
    YesNoItem,
    hallusion_table,
    rating_table,
    read_verdict,
    read_yes_no,
    without_punctuation,
)

FRUIT = {"A": "red apple", "B": "Green", "C": "blue", "D": "none"}
texts = st.text(st.sampled_from("ABDZ abc.,()*is答 answer\n"), max_size=25)


# -- can_infer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "in_2024", "later"),
    [
        ("B.", "B", "B"),
        ("(C)", "C", "C"),
        ("A or B", None, None),
        ("The answer is B", "B", "B"),
        ("red apple", "A", "A"),
        ("It is blue.", "C", "C"),
        ("It is blue and green", None, None),
        ("A green tree", "A", "A"),
        ("a", None, None),
        ("**B**", "B", "B"),
        ("Z", "Z", "Z"),
        ("The correct answer is **B**. Because A is wrong here and so on", None, "B"),
        (
            "I think that the right choice here would be B because of the many things in this "
            "picture",
            "B",
            None,
        ),
        ("A man in a green shirt", "A", "B"),
        ("The answer is blue plum", "C", "B"),
        ("answer is certainly south", None, "C"),
        ("The final answer is Aare", None, "A"),
        ("ANSWER IS * d", None, "D"),
        ("the answer is: B", "B", "B"),
        ("Failed to obtain answer via API. B", None, None),
        ("Sorry, I can't help with images of people yet. B", "Z", "Z"),
        ("I can't process this file. B", "Z", "Z"),
        ("I'm sorry, but without the image provided, B", "Z", "Z"),
        ("Cannot determine the answer", "Z", "Z"),
        ("B Z", "B", "B"),
        ("none of them", "D", "D"),
        ("", None, None),
        ("答案：C。", None, None),
    ],
)
def test_choices_are_inferred(answer: str, in_2024: str | None, later: str | None) -> None:
    assert can_infer(answer, FRUIT) == in_2024
    assert can_infer(answer, FRUIT, later=True) == later


def test_options_may_be_numbers_and_few() -> None:
    assert can_infer("3.0", {"A": 3.0, "B": 4}) == "A"
    assert can_infer("it is 13", {"A": 3, "B": 13}) is None
    assert can_infer("C", {"A": "x", "B": "y"}) is None
    assert can_infer("answer is D", {"A": "x", "B": "y"}, later=True) is None
    assert can_infer("x" * 9, {"A": "xx", "B": "yy"}) == "A"
    assert can_infer("x" * 9, {"A": "xx", "B": "yy"}, later=True) is None
    assert can_infer("", {}) is None


@given(texts, st.booleans())
def test_what_is_inferred_is_an_option(answer: str, later: bool) -> None:
    assert can_infer(answer, FRUIT, later=later) in {None, "Z", *FRUIT}
    for letter in FRUIT:
        assert can_infer(letter, FRUIT, later=later) == letter


# -- multiple choice -----------------------------------------------------------------------------


def test_options_as_a_judge_sees_them() -> None:
    assert render_options({"A": "x", "B": 3.0}) == "There are several options: \nA. x\nB. 3.0\n"


def test_open_questions() -> None:
    item = ChoiceItem("0", "q", {"A": "24/7", "B": "Other Answers"}, "A", "It is 3.43 B", ("3.43",))
    assert infer(item, later=False) == "A"
    assert draw(item) in {"A", "B", "Z"}
    assert draw(item) == draw(item)


def test_accuracy_by_split_and_ability() -> None:
    rows: list[dict[str, Any]] = [
        {"Split": "dev", "L2-category": "logic_reasoning", "Category": "x"},
        {"Split": "validation", "L2-category": "logic_reasoning", "Category": None},
        {"Split": "validation", "L2-category": "x", "Category": "a"},
        {"Split": None, "L2-category": "x", "Category": "a"},
    ]
    table = accuracy_table(rows, [1, 0, 1, 1])
    assert table.columns == ("split", "Overall", "LR", "x", "a")
    # "x" is an l2-category and a category: it stands where the first is, with the second's value
    assert table.rows == (
        ("validation", 0.5, 0.0, None, 1.0),
        ("dev", 1.0, 1.0, 1.0, None),
        ("nan", None, None, None, None),
    )


def test_accuracy_without_splits() -> None:
    assert accuracy_table([{}, {}], [1, 0]).rows == (("none", 0.5),)
    numbers = accuracy_table([{"category": 10}, {"category": 9}], [1, 0])
    assert numbers.columns == ("split", "Overall", "9", "10")
    mixed = accuracy_table([{"category": "b"}, {"category": None}, {"category": 1}], [1, 0, 1])
    assert mixed.columns == ("split", "Overall", "1", "b")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), min_size=1, max_size=9))
def test_accuracy_does_not_depend_on_the_order(rows: list[tuple[str, bool]]) -> None:
    def table(pairs: list[tuple[str, bool]]) -> dict[str, float | None]:
        return accuracy_table(
            [{"category": one} for one, _ in pairs], [x for _, x in pairs]
        ).values()

    assert table(rows) == table(rows[::-1])
    assert all(value is not None and 0 <= value <= 1 for value in table(rows).values())
    perfect = table([(name, True) for name, _ in rows])
    assert set(perfect.values()) == {1.0}


# -- yes or no -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("yes, it is", "Yes"),
        ("No,it is", "No"),
        ('"Yes"', "Yes"),
        ("YES!", "Yes"),
        ("Not at all", "Unknown"),
        ("Yes and no", "Unknown"),
        ("yes.no", "Unknown"),
        ("", "Unknown"),
        ("(Yes)", "Yes"),
        ("yes-1,000", "Unknown"),
        ("**Yes**", "Unknown"),
        ("No.5", "Unknown"),
        ("no 5.", "No"),
    ],
)
def test_yes_and_no(answer: str, read: str) -> None:
    assert read_yes_no(answer) == read
    assert read_verdict(answer) == (None if read == "Unknown" else read)


def test_periods_by_state() -> None:
    many = "1. " * 32 + "Yes."
    assert read_yes_no(many) == "Unknown"  # 32 periods are gone before the last
    assert read_yes_no(many, later=True) == "Yes"
    assert without_punctuation("3.5 a. b.5 5.") == "3.5 a b.5 5"
    assert without_punctuation("3.5 a. b.5 5.", later=True) == "3.5 a b.5 5."


def _items(rows: list[tuple[str, bool]]) -> list[YesNoItem]:
    return [YesNoItem(index, index[:2], index.split("_1_")[0], right) for index, right in rows]


def test_hallusion_rates() -> None:
    table = hallusion_table(
        _items(
            [
                ("VS_map_1_0_0_0", True),
                ("VS_map_1_0_0_1", False),
                ("VD_ocr_1_0_0_0", True),
                ("VD_ocr_1_0_1_0", True),
                ("VD_ocr_1_0_1_1", False),
                ("strange", True),
            ]
        )
    )
    assert [row[0] for row in table.rows] == [
        "Overall",
        "VD",
        "VS",
        "st",
        "VD_ocr",
        "VS_map",
        "strange",
    ]
    values = table.values()
    assert values["Overall|aAcc"] == pytest.approx(400 / 6)
    assert values["Overall|fAcc"] == pytest.approx(100 / 3)
    assert values["Overall|qAcc"] == 50.0
    assert (values["VD|fAcc"], values["VD|qAcc"]) == (50.0, 50.0)
    assert (values["strange|aAcc"], values["strange|fAcc"]) == (100.0, None)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.booleans()), min_size=1))
def test_hallusion_bounds(rows: list[tuple[int, int, bool]]) -> None:
    items = _items([(f"VD_x_1_0_{figure}_{n}", right) for figure, n, right in rows])
    values = hallusion_table(items).values()
    assert values == hallusion_table(items[::-1]).values()
    rates = [values[f"Overall|{name}"] or 0.0 for name in ("aAcc", "fAcc", "qAcc")]
    assert all(0 <= rate <= 100 for rate in rates)
    if all(right for _, _, right in rows):
        assert rates == [100, 100, 100]


def test_rates_of_other_sets() -> None:
    items = [YesNoItem("0", "b", "x", True), YesNoItem("1", "a", None, False)]
    assert rating_table(items).rows == (("none", 50.0, 100.0, 0.0, 100.0),)
    assert rating_table(items).columns == ("split", "Overall", "x", "a", "b")


# -- OCRBench ------------------------------------------------------------------------------------


def test_ocrbench_hits() -> None:
    assert is_hit("in the Centre\nof town", ["CENTRE OF"], "Doc-oriented VQA")
    assert is_hit(" a b ", ["A B"], None)
    assert not is_hit("ab", ["a b"], None)
    assert is_hit(r"x \frac{a}{b}", [r"\frac {a} {b}"], FORMULAS)
    assert not is_hit("X", ["x"], FORMULAS)
    assert is_hit("anything", [""], None)
    assert not is_hit("anything", [], None)


def test_ocrbench_accepted() -> None:
    assert accepted_texts("abc", official=False) == ["a", "b", "c"]
    assert accepted_texts("abc", official=True) == ["abc"]
    assert accepted_texts(["x", 3], official=False) == ["x", "3"]
    assert accepted_texts(12, official=False) == ["12"]


def test_ocrbench_totals() -> None:
    result = totals(
        {"Regular Text Recognition": 2, "Handwriting Recognition": 1, FORMULAS: 4, "?": 9}
    )
    assert list(result) == [
        "Text Recognition",
        "Scene Text-centric VQA",
        "Doc-oriented VQA",
        "Key Information Extraction",
        FORMULAS,
        "Final Score",
        "Final Score Norm",
    ]
    assert list(result.values()) == [3, 0, 0, 0, 4, 7, 0.7]


# -- MathVista -----------------------------------------------------------------------------------

CHOICE = MathItem("multi_choice", "text", "8/11", ("3/11", "8/11", "6/11", "3/5"), "B")
INTEGER = MathItem("free_form", "integer", "14")
ZERO = MathItem("free_form", "integer", 0)
FLOAT = MathItem("free_form", "float", "1.50", precision=1)
LIST = MathItem("free_form", "list", "[2007, 2008]")


@pytest.mark.parametrize(
    ("item", "answer", "prefetched", "hit"),
    [
        (CHOICE, "B", "B", True),
        (CHOICE, "8/11", "B", True),
        (CHOICE, "(A)", "A", False),
        (CHOICE, "Z", "Z", False),
        (CHOICE, "7/11", None, False),
        (INTEGER, "14", "14", True),
        (INTEGER, " 1_4 ", "14", True),
        (INTEGER, "14.0", None, False),
        (INTEGER, "It is 14", None, False),
        (ZERO, "0", None, True),
        (FLOAT, "1.5", "1.5", True),
        (FLOAT, "57%", None, False),
        (FLOAT, "1.52", None, False),
        (FLOAT, "inf", None, False),
        (FLOAT, "nan", None, False),
        (LIST, "[2007, 2008]", None, False),
        (LIST, "None", None, False),
        (MathItem("free_form", "integer", "3.0"), "3", None, False),
        (MathItem("free_form", "integer", 3.0), "3", "3", True),
        (MathItem("free_form", "integer", "nan"), "3", None, False),
        (MathItem("multi_choice", "text", "x"), "A", None, False),
        (MathItem("free_form", "text", "cat"), "cat", None, False),
    ],
)
def test_mathvista(item: MathItem, answer: str, prefetched: str | None, hit: bool) -> None:
    assert prefetch(item, answer) == prefetched
    assert check(item, answer) is hit


@pytest.mark.parametrize(
    ("item", "answer", "hit"),
    [
        (INTEGER, "14.0", True),
        (ZERO, "0", True),
        (FLOAT, "1.52", True),
        (LIST, "[2007,2008]", True),
        (LIST, "[2007, 2009]", False),
        (INTEGER, "inf", False),
        (CHOICE, "(A)", False),
    ],
)
def test_mathvista_official(item: MathItem, answer: str, hit: bool) -> None:
    assert check(item, answer, official=True) is hit
    if item is not CHOICE:
        assert (prefetch(item, answer, official=True) is not None) is hit


def test_skills_in_order_and_twice() -> None:
    right = MathReading("1", True, True, "")
    wrong = MathReading("", False, False, "")
    table = skill_table([(["b", "b"], "t"), (["a"], "b"), ([], "t")], [right, wrong, right])
    assert [row[:4] for row in table.rows] == [
        ("Overall", 3, 2, 2),
        ("b", 3, 2, 2),
        ("t", 2, 2, 2),
        ("a", 1, 0, 0),
    ]


# -- MM-Vet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        *(("1.0", 1.0), (" 0.3\n", 0.3), ("0", 0.0), ("1e-1", 0.1)),
        *(("1.1", None), ("-0.1", None), ("nan", None), ("", None), ("0.5 because", None)),
    ],
)
def test_marks(reply: str, mark: float | None) -> None:
    assert read_mark(reply) == mark


def test_single_capabilities_count_twice() -> None:
    categories = ["rec", "ocr,math", "rec", "ocr"]
    coarse, fine = mark_tables(categories, [1.0, 0.5, 0.0, 0.25], official=False)
    assert coarse.columns == ("Category", "tot", "acc")
    values = coarse.values()
    assert (values["rec|tot"], values["rec|acc"]) == (4, 50.0)
    assert (values["ocr|tot"], values["ocr|acc"]) == (3, pytest.approx(100 / 3))
    assert (values["spat|tot"], values["spat|acc"]) == (0, None)
    assert values["Overall|acc"] == 43.75
    assert [row[:2] for row in fine.rows] == [
        ("rec", 4),
        ("ocr_math", 1),
        ("ocr", 3),
        ("Overall", 4),
    ]
    coarse, fine = mark_tables(categories, [1.0, 0.5, 0.0, 0.25], official=True)
    assert (coarse.values()["rec|tot"], coarse.values()["ocr|tot"]) == (2, 2)
    assert [row[1] for row in fine.rows] == [2, 1, 1, 4]


def test_the_published_totals_are_double_counts() -> None:
    """187 = 150 + 37 and 108 = 96 + 12, as the specification works out."""
    rest = ["rec,know,gen"] * 80 + ["rec,know"] * 4 + ["rec,ocr,spat"] * 29 + ["ocr,math"] * 26
    categories = ["rec"] * 37 + ["ocr"] * 12 + rest + ["ocr,spat"] * 29 + ["spat"] * 1
    coarse, _ = mark_tables(categories, [0.0] * len(categories), official=False)
    assert len(categories) == 218
    assert {name: coarse.values()[f"{name}|tot"] for name in ("rec", "ocr", "Overall")} == {
        "rec": 187,
        "ocr": 108,
        "Overall": 218,
    }


# -- LLaVA-Bench ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("review", "marks"),
    [
        *(("8 6\nBoth ...", (8, 6)), ("8,6", (8, 6)), ("8.5 7", (8.5, 7))),
        *(("8, 7", NO_MARKS), ("8", NO_MARKS), ("8 7 6", NO_MARKS), ("", NO_MARKS)),
        *((None, NO_MARKS), ("8 good", NO_MARKS), ("\n8 7", NO_MARKS), ("nan inf", NO_MARKS)),
    ],
)
def test_reviews(review: str | None, marks: tuple[float, float]) -> None:
    assert read_marks(review) == marks


def test_relative_scores() -> None:
    table = marks_table(["conv", "zzz", None], [(8, 6), (10, 5), NO_MARKS], official=False)
    assert table.rows == (
        ("overall", 58.8, 33.3, 56.7),
        ("conv", 75.0, 60.0, 80.0),
        ("zzz", 50.0, 50.0, 100.0),
    )
    assert marks_table([None], [NO_MARKS], official=True).rows == (("overall", None, None, None),)


# -- tables --------------------------------------------------------------------------------------


def test_tables_with_fewer_rows_than_columns_are_transposed() -> None:
    table = ScoreTable.of([{"split": "none", "Overall": 0.6775882352941176, "math": None}])
    assert print_table(table) == (
        "-------  ------------------\n"
        "split    none\n"
        "Overall  0.6775882352941176\n"
        "math     nan\n"
        "-------  ------------------"
    )
    assert csv_table(table) == '"split","Overall","math"\n"none","0.6775882352941176",""\n'


def test_other_tables_are_numbered_and_cut_to_six_digits() -> None:
    rows = [("Overall", 65.51, 41.6185), ("VD", 62.94416243654822, math.pi), ("VS", 70.0, 37.5)]
    table = ScoreTable(("split", "aAcc", "fAcc"), tuple(rows))
    assert print_table(table) == (
        "-  -------  -------  --------\n"
        "0  Overall  65.51    41.6185\n"
        "1  VD       62.9442   3.14159\n"
        "2  VS       70       37.5\n"
        "-  -------  -------  --------"
    )
    assert table.values()["VD|fAcc"] == math.pi


def test_the_guides_table_of_mathvista() -> None:
    counts = {"Overall": (1000, 665, 575), "scientific reasoning": (122, 94, 68)}
    counts |= {f"skill {n}": (4, 2, 1) for n in range(11)}
    rows = [
        {
            "Task&Skill": k,
            "tot": t,
            "prefetch": p,
            "hit": h,
            "rate": p / t * 100,
            "acc": h / t * 100,
        }
        for k, (t, p, h) in counts.items()
    ]
    lines = print_table(ScoreTable.of(rows)).split("\n")
    assert lines[1] == " 0  Overall               1000  665  575  66.5     57.5"
    assert lines[2] == " 1  scientific reasoning   122   94   68  77.0492  55.7377"
    assert lines[-2] == "12  skill 10                 4    2    1  50       25"
