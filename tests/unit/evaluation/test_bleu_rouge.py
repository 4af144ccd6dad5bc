"""BLEU and ROUGE: what the libraries are asked for."""

from __future__ import annotations

import math
import sys

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.metrics.bleu_rouge import (
    RougeTokenizer,
    bleu_tokenizer,
    corpus_bleu,
    rouge,
    sentence_bleu,
)

MAT = "the cat sat on the mat"


def test_bleu_of_equal_texts_is_100() -> None:
    assert corpus_bleu([(MAT, [MAT])], tokenize="13a") == 100.0
    assert sentence_bleu([("7", ["7"]), ("", ["7"])], tokenize="13a") == [100.0, 0.0]


def test_bleu_by_hand() -> None:
    # Five words of the six: every n-gram is there; the brevity penalty is exp(1 - 6/5).
    expected = 100 * math.exp(1 - 6 / 5)
    assert corpus_bleu([("the cat sat on the", [MAT])], tokenize="13a") == pytest.approx(expected)


def test_questions_may_have_different_numbers_of_references() -> None:
    samples = [(MAT, ["a dog", MAT]), ("a dog sleeps here now", ["a dog sleeps here now"])]
    assert corpus_bleu(samples, tokenize="13a") == 100.0


def test_chinese_is_cut_into_characters() -> None:
    samples = [("一只猫坐着", ["一只猫坐着"])]
    assert bleu_tokenizer(samples) == "zh"
    assert corpus_bleu(samples, tokenize="zh") == 100.0
    assert bleu_tokenizer([*samples, ("a", ["a"])]) == "13a"
    assert rouge([("一只猫", ["一只狗"])])[0]["rouge1"] == pytest.approx(2 / 3)


def test_rouge_by_hand() -> None:
    scores, empty = rouge([("the cat", ["the cat sat", "sat"]), ("", ["a"])])
    assert scores == pytest.approx({"rouge1": 0.8, "rouge2": 2 / 3, "rougeL": 0.8})
    assert empty == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


@pytest.mark.parametrize("text", ["It's 3.5 m, snake_case!", "", "A--B"])
def test_words_are_the_librarys_on_ascii(text: str) -> None:
    from rouge_score.tokenize import tokenize

    assert RougeTokenizer().tokenize(text) == tokenize(text, None)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(
        ConfigError, match=r'bleu needs sacrebleu\. pip install "internvl-chat\[eval\]"'
    ):
        corpus_bleu([(MAT, [MAT])], tokenize="13a")
    with pytest.raises(ConfigError, match="rouge needs rouge-score"):
        rouge([(MAT, [MAT])])
