"""Scores of the SmolLM2 demo."""

from __future__ import annotations

import pytest

from examples.smollm2.evaluate import answers_paris, begins_with, summarize
from examples.tiny_model.evaluate import Reply


@pytest.mark.parametrize(
    ("reply", "truth", "right"),
    [
        ("red", "red", True),
        ("Red.", "red", True),
        ("red star", "red", True),
        ("The star is red.", "red", False),
        ("7", "7", True),
        ("17", "7", False),
        ("7.", "7", True),
        ("", "7", False),
        ("dark red", "red", False),
    ],
)
def test_the_first_word_or_number_decides(reply: str, truth: str, right: bool) -> None:
    assert begins_with(reply, truth) is right


def test_paris_must_be_named() -> None:
    assert answers_paris("The capital of France is Paris.")
    assert not answers_paris("red")
    assert not answers_paris("The capital is Parish.")


def test_accuracy_stands_beside_chance() -> None:
    def reply(skill: str, truth: str, text: str) -> Reply:
        return Reply(skill=skill, truth=truth, text=text)

    found = summarize(
        [
            reply("color", "red", "red"),
            reply("color", "blue", "green"),
            reply("digit", "7", "7"),
        ]
    )
    assert found["color"] == {
        "accuracy": 0.5,
        "chance": 0.125,
        "asked": 2,
        "examples": [{"truth": "red", "reply": "red"}, {"truth": "blue", "reply": "green"}],
    }
    assert found["digit"]["accuracy"] == 1.0
    assert found["digit"]["chance"] == 0.1
