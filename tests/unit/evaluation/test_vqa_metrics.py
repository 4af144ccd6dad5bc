"""Pure metrics of the VQA family: the specification's vectors, hand-computed cases, properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.evaluation.metrics.anls import anls, levenshtein
from internvl_chat.evaluation.metrics.averages import mean_in_order
from internvl_chat.evaluation.metrics.exact_match import same_letter, same_text
from internvl_chat.evaluation.metrics.gqa import (
    GqaAnswer,
    GqaReport,
    chi_square,
    clean_prediction,
    count_steps,
)
from internvl_chat.evaluation.metrics.relaxed_accuracy import read_number, relaxed_accuracy
from internvl_chat.evaluation.metrics.vqa_accuracy import (
    CONTRACTIONS,
    normalize_answer,
    normalize_answer_by_wording,
    normalize_words,
    strip_periods,
    vqa_accuracy,
)

texts = st.text(st.sampled_from("ab 1.,'-?/%ß\n"), max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's up?", "what 's up"),
        ("10,000", "10000"),
        ("a red, blue car", "red blue car"),
        ("$3.50.", "$3.50"),
        ("U.S.A", "usa"),
        ("One-two", "1 2"),
        ("none", "0"),
        ("the", ""),
        ("dont", "don't"),
        ("Im", "im"),
        ("a/b", "b"),
        ("x / y", "x y"),
        ("well- done", "well done"),
        ("it-s", "it s"),
        ("http://a.b/c", "http: ab c"),
        ("10:30", "10:30"),
        ("(hi)", "hi"),
        ("two\tdogs\nran", "2 dogs ran"),
        ("`quoted`", "quoted"),
        ("red,blue", "redblue"),
        ("shes", "shes"),
        ("theyre ten", "they're 10"),
        ("couldnt've", "couldn't've"),
        ("", ""),
    ],
)
def test_answers_are_normalized(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_periods_alone() -> None:
    assert strip_periods("a.b 3.5 5. .7 x.") == "ab 3.5 5 .7 x"
    assert strip_periods("." * 40) == "." * 8
    assert normalize_answer("x" + "." * 40 + "y") == "x........y"
    assert normalize_answer_by_wording("x" + "." * 40 + "y") == "xy"


def test_commas_by_the_official_wording() -> None:
    assert normalize_answer_by_wording("Red,blue") == "red blue"
    assert normalize_answer_by_wording("1,000, the end") == "1000 end"
    assert normalize_answer_by_wording("a red, blue car's") == normalize_answer("a red, blue car's")


def test_a_comma_between_digits_takes_all_punctuation_along() -> None:
    assert normalize_words("1,000 red-hot, cars?") == "1000 redhot cars"
    assert normalize_words("red-hot, cars?") == "red hot cars"


def test_contractions_are_those_of_the_table() -> None:
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["oclock"] == "o'clock"
    assert CONTRACTIONS["twas"] == "'twas"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert CONTRACTIONS["y'alld've"] == "y'all'd've"
    assert "someoned" in CONTRACTIONS
    assert "im" not in CONTRACTIONS


@pytest.mark.parametrize(
    ("answer", "expected"), [("a1", 0.3), ("B1", 0.6), ("c1.", 0.9), ("d1", 1.0), ("e1", 0.0)]
)
def test_ten_humans(answer: str, expected: float) -> None:
    humans = ["a1", "b1", "b1", "c1", "c1", "c1", "d1", "d1", "d1", "d1"]
    assert vqa_accuracy(answer, humans) == pytest.approx(expected)


def test_scores_are_added_in_the_order_of_the_humans() -> None:
    def three_say_x(*places: int) -> float:
        return vqa_accuracy("x", ["x" if place in places else "y" for place in range(10)])

    assert three_say_x(0, 1, 2) == 0.9
    assert three_say_x(0, 1, 9) == 0.8999999999999998
    assert mean_in_order([0.1] * 10) == 0.09999999999999999
    assert mean_in_order([]) == 0.0


def test_other_numbers_of_humans() -> None:
    assert vqa_accuracy("x", ["x"]) == 1.0
    assert vqa_accuracy("y", ["x"]) == 0.0
    assert vqa_accuracy("x", ["x", "x"]) == 1.0
    assert vqa_accuracy("x", ["x", "y"]) == 0.5
    with pytest.raises(ValueError, match="no human answer"):
        vqa_accuracy("x", [])


@given(texts, st.lists(texts, min_size=10, max_size=10))
def test_vqa_accuracy_is_bounded_and_nearly_the_same_in_any_order(
    answer: str, humans: list[str]
) -> None:
    value = vqa_accuracy(answer, humans)
    assert 0 <= value <= 1
    assert vqa_accuracy(answer, humans[::-1]) == pytest.approx(value)
    count = [normalize_answer(one) for one in humans].count(normalize_answer(answer))
    assert value == pytest.approx([0, 0.3, 0.6, 0.9, 1][min(count, 4)])
    assert vqa_accuracy(humans[0], humans[:1] * 10) == 1


RELAXED = [
    ("10", "10.5", True, True),
    ("10", "9.4", False, False),
    ("95", "100", False, True),
    ("96", "100", True, True),
    ("100", "105", True, True),
    ("5%", "0.05", True, True),
    ("5%", "5", False, False),
    ("50%", "51%", True, True),
    ("0", "0", True, True),
    ("0", "0.0", False, False),
    ("0.0", "0", False, False),
    ("", "0", False, False),
    ("1,000", "1000", False, False),
    ("1e3", "1000", True, True),
    ("2014", "2014.0", True, True),
    ("1950", "2014", True, True),
    ("Yes", "yes", True, True),
    ("Blue.", "blue", False, False),
    ("3", "-3", False, False),
    ("nan", "1", False, False),
    ("inf", "inf", False, False),
    (" yes\n", "Yes", True, True),
    ("yes", " yes", False, False),
    ("$5", "$5", True, True),
    ("0", "5", False, False),
]


@pytest.mark.parametrize(("prediction", "gold", "swapped", "textbook"), RELAXED)
def test_relaxed_accuracy(prediction: str, gold: str, swapped: bool, textbook: bool) -> None:
    assert relaxed_accuracy(prediction, gold, relative_to="prediction") is swapped
    assert relaxed_accuracy(prediction, gold) is textbook


def test_numbers() -> None:
    assert read_number("23.5%%") == 0.235
    assert read_number("1e3") == 1000
    assert [read_number(text) for text in ("", "%", "$5", "1,000", "two")] == [None] * 5


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_itself(number: float) -> None:
    assert relaxed_accuracy(str(number), str(number))
    assert relaxed_accuracy(str(number), str(number), relative_to="prediction")


@pytest.mark.parametrize(
    ("golds", "prediction", "expected"),
    [
        (["0.28"], "0.38", 0.75),
        (["Hello World"], "hello  world", 1.0),
        (["abcd"], "ab", 0.5),
        (["abcd"], "axyz", 0.0),
        (["ITC Limited", "itc"], "ITC Limited.", 11 / 12),
        (["a b"], "ab", 2 / 3),
        ([""], "", 1.0),
        (["x"], "", 0.0),
        (["Straße"], "STRASSE", 5 / 7),
    ],
)
def test_anls(golds: list[str], prediction: str, expected: float) -> None:
    assert anls(golds, prediction) == pytest.approx(expected)


def test_surplus_white_space_makes_anls_lenient_unless_lengths_are_those_compared() -> None:
    assert anls(["ab   cd"], "abxx") == pytest.approx(4 / 7)
    assert anls(["ab   cd"], "abxx", lengths="compared") == 0.0
    with pytest.raises(ValueError, match="no right answer"):
        anls([], "x")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("a", "b", 1)],
)
def test_levenshtein(first: str, second: str, expected: int) -> None:
    assert levenshtein(first, second) == levenshtein(second, first) == expected


@given(texts, texts, texts)
def test_levenshtein_is_a_metric(first: str, second: str, third: str) -> None:
    distance = levenshtein(first, second)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))
    assert distance <= levenshtein(first, third) + levenshtein(third, second)


@given(st.lists(texts, min_size=1, max_size=4), texts)
def test_anls_is_bounded_and_a_gold_answer_is_perfect(golds: list[str], prediction: str) -> None:
    value = anls(golds, prediction)
    assert value == 0 or 0.5 <= value <= 1
    assert anls(golds[::-1], prediction) == value
    assert anls(golds, golds[-1]) == 1


def test_exact_match() -> None:
    assert same_text(" c\n", "C")
    assert not same_text("C.", "C")
    for text in ("C", "c", "C.", "(C)", "(c) stem", "C. stem", "C: stem", " C) ", "C,"):
        assert same_letter(text, "C"), text
    for text in ("", "Carbon", "C stem", "Answer: C", "the C", "D. C", "[C]"):
        assert not same_letter(text, "C"), text


def gqa(prediction: str, gold: str, group: str | None = None) -> GqaAnswer:
    return GqaAnswer(
        gold=gold,
        prediction=prediction,
        structural_type="query",
        semantic_type="attr",
        num_steps=1,
        num_words=2,
        group=group,
    )


def test_gqa_predictions_and_steps() -> None:
    assert clean_prediction("Yes...") == "yes"
    assert clean_prediction("No. ") == "no. "
    operations = [
        ("select", "existing sign"),
        ("exist", "?"),
        ("query", "name"),
        ("choose name", "cat|dog"),
        ("query", "color"),
        ("select", "cup"),
    ]
    assert count_steps([{"operation": one, "argument": other} for one, other in operations]) == 2


def test_chi_square_weighs_groups_by_their_questions() -> None:
    place = [gqa("no", "no", "place"), gqa("yes", "yes", "place")]
    color = [gqa("red", "red", "color"), gqa("red", "blue", "color"), gqa("blue", "blue", "color")]
    assert chi_square(place) == 0
    assert chi_square(color) == 1.5
    assert chi_square([*place, *color, gqa("x", "y")]) == pytest.approx(0.9)
    assert chi_square([gqa("x", "y")]) == 0
    assert chi_square([gqa("green", "red", "color")]) == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab")), max_size=8))
def test_gqa_in_any_order(pairs: list[tuple[str, str]]) -> None:
    answers = [gqa(prediction, gold, "one") for prediction, gold in pairs]
    report = GqaReport.of(answers)
    other = GqaReport.of(answers[::-1])
    assert 0 <= report.accuracy == other.accuracy == report.open <= 100
    assert report.binary == 0
    assert report.distribution == pytest.approx(other.distribution)
    perfect = GqaReport.of([gqa(one.gold, one.gold, "one") for one in answers])
    assert perfect.accuracy == (100 if answers else 0)
    assert perfect.distribution == 0
