"""Tokenizers from disk, sentencepiece ones included, and the special tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from internvl_chat.checkpoint.tokenizer import (
    add_special_tokens,
    check_template_tokens,
    load_tokenizer,
)
from internvl_chat.data.constants import SPECIAL_TOKENS
from internvl_chat.errors import CheckpointError, ConfigError

from .tiny import tiny_tokenizer


def test_special_tokens_are_added_once_in_order(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 259
    assert add_special_tokens(tokenizer) == 9
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(259, 268))
    assert add_special_tokens(tokenizer) == 0
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), max_seq_length=77)
    assert add_special_tokens(again) == 0
    assert again.model_max_length == 77
    assert again.padding_side == "right"
    assert again("<img><IMG_CONTEXT></img>x")["input_ids"] == [259, 261, 260, *again("x").input_ids]
    assert again.decode([97, 261, 98], skip_special_tokens=True) == again.decode([97, 98])


def test_some_are_there_already() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<ref>"], special_tokens=True)
    assert add_special_tokens(tokenizer) == 8
    assert tokenizer.convert_tokens_to_ids(["<img>", "<ref>", "</box>"]) == [260, 259, 267]


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer files"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tokenizer(str(tmp_path / "none"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded as a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_template_of_another_model(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(end_of_turn=False)
    add_special_tokens(tokenizer)
    with pytest.raises(ConfigError, match=r"cuts into 10 tokens: the model could never stop"):
        check_template_tokens(tokenizer, "Hermes-2")
    check_template_tokens(tokenizer, "internvl_zh")
    with pytest.raises(ConfigError, match="Hermes-2"):
        check_template_tokens(tokenizer, "Hermes2")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_sentencepiece_directory_of_the_yi_kind(tmp_path: Path, model_type: str) -> None:
    """``tokenizer.model`` and no ``tokenizer.json``, the ChatML marks being pieces of it."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"a red circle {i} and {i * 7} blue squares" for i in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=340,
        model_type=model_type,
        byte_fallback=True,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        add_dummy_prefix=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(str(tmp_path), use_fast=False)
    sentence = "a red circle 12 and\nblue Ω"
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    assert ids == reference.encode(sentence)
    assert add_special_tokens(tokenizer) == 9
    assert tokenizer.convert_tokens_to_ids("<img>") == reference.vocab_size()
    check_template_tokens(tokenizer, "Hermes-2")
