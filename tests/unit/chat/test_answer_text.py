"""Pieces of an answer: together what ``model.chat`` decodes, and never more than is certain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.chat.answer_text import AnswerText
from internvl_chat.model.chat import decode_answer
from tests.support.checkpoints import tiny_tokenizer
from tests.support.serving import tiny

STOP = "<|im_end|>"
BYTES = tiny_tokenizer()


def pieces(tokenizer: Any, ids: list[int], *stop: str) -> list[str]:
    text = AnswerText(tokenizer, (*stop, STOP))
    return [*(text.push(token) for token in ids), text.finish()]


def byte_ids(text: str) -> list[int]:
    return BYTES(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 255 + 3), max_size=40))
def test_bytes_in_any_order(ids: list[int]) -> None:
    """Half and broken characters, special tokens and white space among them."""
    assert "".join(pieces(BYTES, ids)) == decode_answer(BYTES, ids, (STOP,))


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(268, 968), max_size=40))
def test_words_in_any_order(ids: list[int]) -> None:
    """The shipped tokenizer, whose words bring their leading spaces."""
    tokenizer = tiny()[1]
    assert "".join(pieces(tokenizer, ids)) == decode_answer(tokenizer, ids, (STOP,))


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_in_words_and_bytes(text: str) -> None:
    for tokenizer in (tiny()[1], BYTES):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(pieces(tokenizer, ids)) == decode_answer(tokenizer, ids, (STOP,))


def test_half_a_character_waits_for_the_rest() -> None:
    assert pieces(BYTES, byte_ids("a星b")) == ["a", "", "", "星", "b", ""]


def test_white_space_waits_for_what_follows() -> None:
    assert pieces(BYTES, byte_ids(" a b ")) == ["", "a", "", " b", "", ""]


def test_what_may_become_a_stop_string_waits() -> None:
    told = pieces(BYTES, byte_ids("abaXabcd"), "abc")
    assert told == ["", "", "ab", "aX", "", "", "", "", ""]
    assert "".join(pieces(BYTES, byte_ids("abab"), "abc")) == "abab"


@pytest.mark.parametrize(
    ("text", "stop", "told"),
    [
        ("one. two. three", (". t",), "one"),
        ("one two three", ("three", "two"), "one"),
        ("\n\nlate", ("\n",), ""),
        ("one two", ("xyz",), "one two"),
        ("星星月", ("月",), "星星"),
    ],
)
def test_a_stop_string_ends_the_text_before_it(text: str, stop: tuple[str, ...], told: str) -> None:
    answer = AnswerText(BYTES, stop)
    pushed = "".join(answer.push(token) for token in byte_ids(text))
    assert pushed + answer.finish() == told
    assert answer.stopped == (stop != ("xyz",))
    assert answer.push(byte_ids("a")[0]) == "" or not answer.stopped
