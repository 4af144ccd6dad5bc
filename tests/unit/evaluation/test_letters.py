from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.evaluation.metrics.letters import lettered, listed, named_letter, read_letter

OPTIONS = {"A": "cat", "B": "Dog", "C": "a", "D": "None of these"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("(B)", "(B)"),
        ("b", "b"),
        ("Dog", "D"),
        ("The cat", "A"),
        ("the answer is Dog", "B"),
        ("Answer: B", "A"),
        ("Because", "B"),
        ("zebra", "C"),
        (" C ", "C"),
        ("E. x", "E. x"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_read_letter(answer: str, letter: str) -> None:
    # The first twelve are what the evaluators return; on the last two they stop.
    assert read_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B. Dog", "B"),
        ("(B) cat", "B"),
        ("Answer: B", "B"),
        ("The answer is B, a dog.", "B"),
        ("the correct option is (b)", "B"),
        ("Because of the cat", "A"),
        ("dog", "B"),
        ("A dog", ""),  # two options: "a" and "Dog"
        ("the answer is a cat", ""),  # "a" is no letter here, and two options are named
        ("zebra", ""),
        ("E", ""),
        ("The answer is E", ""),
        ("", ""),
    ],
)
def test_named_letter(answer: str, letter: str) -> None:
    assert named_letter(answer, OPTIONS) == letter


def test_named_letter_without_texts() -> None:
    assert named_letter("The answer is C.", "ABCD") == "C"
    assert named_letter("cat", "ABCD") == ""
    assert named_letter("", "ABCD") == ""


def test_options_get_letters() -> None:
    assert lettered(["x", "y"]) == {"A": "x", "B": "y"}
    assert listed({"A": "x", "B": "y"}) == ["A. x", "B. y"]
    with pytest.raises(ValueError, match="27 options, 26 letters"):
        lettered(["x"] * 27)


@given(st.text())
def test_reading_twice_changes_nothing(answer: str) -> None:
    # So an answer file that holds letters is scored like the answers it was made of.
    once = read_letter(answer, OPTIONS)
    assert read_letter(once, OPTIONS) == once


@given(st.sampled_from(sorted(OPTIONS)))
def test_a_letter_means_itself(letter: str) -> None:
    assert read_letter(letter, OPTIONS) == named_letter(letter, OPTIONS) == letter
