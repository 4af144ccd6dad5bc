"""Tokenizers from disk, sentencepiece ones included, and the special tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from internvl_chat.checkpoint.tokenizer import (
    add_special_tokens,
    check_template_tokens,
    find_tokenizer,
    has_tokenizer,
    load_tokenizer,
)
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.constants import SPECIAL_TOKENS
from tests.support.checkpoints import tiny_tokenizer


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
    with pytest.raises(CheckpointError, match="no tokenizer in it"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(CheckpointError, match="no such directory"):
        load_tokenizer(str(tmp_path / "none"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded as a tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "enough"),
    [
        (["tokenizer.json"], True),
        (["tokenizer.model"], True),
        (["vocab.txt"], True),
        (["vocab.json", "merges.txt"], True),
        (["vocab.json"], False),
        (["merges.txt", "special_tokens_map.json"], False),
        (["tokenizer_config.json"], False),
        (["vocab.model"], False),
    ],
)
def test_which_files_make_a_tokenizer(tmp_path: Path, names: list[str], enough: bool) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert has_tokenizer(tmp_path) is enough
    if enough:
        assert find_tokenizer(str(tmp_path)) == tmp_path
    else:
        wanted = r"tokenizer\.json or tokenizer\.model or vocab\.json and merges\.txt or vocab\.txt"
        with pytest.raises(CheckpointError, match=rf"no tokenizer in it\. Copy .*: {wanted}\."):
            find_tokenizer(str(tmp_path))


def _byte_pair_files(directory: Path) -> None:
    vocabulary = tiny_tokenizer().get_vocab()
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")


def _word_piece_files(directory: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b"]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n")


@pytest.mark.parametrize(
    ("write", "settings", "ids"),
    [
        (_byte_pair_files, {"tokenizer_class": "GPT2Tokenizer"}, [64, 65]),
        (_byte_pair_files, {"tokenizer_class": "Qwen2Tokenizer"}, [64, 65]),
        (_word_piece_files, {"tokenizer_class": "BertTokenizer", "eos_token": "[SEP]"}, [5, 7]),
    ],
)
def test_tokenizers_of_separate_vocabulary_files_load(
    tmp_path: Path, write: Callable[[Path], None], settings: dict[str, str], ids: list[int]
) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert has_tokenizer(tmp_path)
    assert load_tokenizer(str(tmp_path))("ab", add_special_tokens=False)["input_ids"] == ids


def test_an_adapter_of_peft_alone_has_its_base_s_tokenizer(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_tokenizer().save_pretrained(base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    named = json.dumps({"base_model_name_or_path": str(base)})
    (adapter / "adapter_config.json").write_text(named)
    with pytest.raises(CheckpointError, match=f"its base model is not at {base}"):
        find_tokenizer(adapter)
    (base / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    assert find_tokenizer(adapter) == base
    tiny_tokenizer().save_pretrained(adapter)
    assert find_tokenizer(adapter) == adapter


def test_a_template_of_another_model(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(end_of_turn=False)
    add_special_tokens(tokenizer)
    with pytest.raises(ConfigError, match=r"cuts into 10 tokens: the model could never stop"):
        check_template_tokens(tokenizer, "Hermes-2")
    check_template_tokens(tokenizer, "internvl_zh")
    with pytest.raises(ConfigError, match="Hermes-2"):
        check_template_tokens(tokenizer, "Hermes2")


def write_sentencepiece(directory: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """``tokenizer.model`` and no ``tokenizer.json``, as Yi and published V1-2 checkpoints."""
    lines = [f"a red circle {i} and {i * 7} blue squares of a user" for i in range(300)]
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    settings |= {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    for key in ("legacy", "add_bos_token"):
        if key in options:
            settings[key] = options.pop(key)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=340,
        byte_fallback=True,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        hard_vocab_limit=False,
        minloglevel=2,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options},
    )
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def pieces(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(
    "rule", [{}, {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}]
)
def test_text_is_cut_as_sentencepiece_cuts_it(
    tmp_path: Path, model_type: str, prefix: bool, rule: dict[str, Any]
) -> None:
    reference = write_sentencepiece(
        tmp_path, model_type=model_type, add_dummy_prefix=prefix, **rule
    )
    tokenizer = load_tokenizer(str(tmp_path), use_fast=False)
    for text in ("a red  circle 12 and\nblue", "Ω and ﬁ 中 of a user", " squares"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_prefix_space_after_a_special_token_as_in_transformers_4(tmp_path: Path) -> None:
    text = "<|im_start|>user<|im_end|>"
    write_sentencepiece(tmp_path, model_type="bpe", add_dummy_prefix=True)
    assert pieces(load_tokenizer(str(tmp_path)), text) == [
        "<|im_start|>",
        "▁user",
        "<|im_end|>",
    ]
    write_sentencepiece(tmp_path, model_type="bpe", add_dummy_prefix=True, legacy=False)
    assert pieces(load_tokenizer(str(tmp_path)), text) == ["<|im_start|>", "us", "er", "<|im_end|>"]
    write_sentencepiece(tmp_path, model_type="bpe", add_dummy_prefix=False, legacy=True)
    assert pieces(load_tokenizer(str(tmp_path)), text) == ["<|im_start|>", "us", "er", "<|im_end|>"]


def test_a_sentencepiece_tokenizer_grows_saves_and_loads(tmp_path: Path) -> None:
    reference = write_sentencepiece(tmp_path, model_type="bpe", add_bos_token=True)
    tokenizer = load_tokenizer(str(tmp_path), max_seq_length=99)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert add_special_tokens(tokenizer) == 9
    assert tokenizer.convert_tokens_to_ids("<img>") == reference.vocab_size()
    check_template_tokens(tokenizer, "Hermes-2")
    assert tokenizer("blue").input_ids == [1, *reference.encode("blue")]
    tokenizer.save_pretrained(tmp_path / "saved")
    for again in (
        load_tokenizer(str(tmp_path / "saved")),
        AutoTokenizer.from_pretrained(tmp_path / "saved", use_fast=False),
    ):
        for text in ("<|im_start|>user\na red <img><IMG_CONTEXT></img>", " blue"):
            assert again(text).input_ids == tokenizer(text).input_ids
        assert again.model_max_length == 99


def test_added_tokens_of_a_published_checkpoint_keep_their_ids(tmp_path: Path) -> None:
    size = write_sentencepiece(tmp_path, model_type="bpe").vocab_size()
    added = {"<img>": size, "</img>": size + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.convert_tokens_to_ids(["<img>", "</img>"]) == [size, size + 1]
    assert pieces(tokenizer, "<img>blue</img>") == ["<img>", "▁blue", "</img>"]
    assert add_special_tokens(tokenizer) == 7
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<img>": size + 5}))
    with pytest.raises(CheckpointError, match=f"should be id {size + 5} and would be {size}"):
        load_tokenizer(str(tmp_path))


def test_a_broken_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match="is no sentencepiece model"):
        load_tokenizer(str(tmp_path))
