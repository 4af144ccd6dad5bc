"""Small tokenizers of every kind the data path meets, made on the spot."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from internvl_chat.model.constants import SPECIAL_TOKENS

MARKS = ["<|im_start|>", "<|im_end|>"]
_CORPUS = (
    "What colour is the square? The square is red.",
    "How many circles are there? There are three circles.",
    "Read the word. hello world, this is a picture of a cat and a dog",
    "assistant user system 你好 世界 英文名叫 是一个有用无害的人工智能助手",
)


def byte_level(*, merges: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE as of GPT-2 or Qwen; its post-processor trims spaces off the offsets."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ġ", "r"), ("e", "d"), ("Ġr", "ed")] if merges else []
    vocab = {piece: number for number, piece in enumerate(alphabet)}
    for left, right in pairs:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.pad_token = tokenizer.eos_token
    return with_special_tokens(tokenizer)


@lru_cache(maxsize=4)
def _model(normalization: str) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 4),
        model_writer=written,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        hard_vocab_limit=False,
        normalization_rule_name=normalization,
        remove_extra_whitespaces=normalization != "identity",
        minloglevel=2,
    )
    return written.getvalue()


def sentencepiece_file(folder: Path, normalization: str = "identity") -> Path:
    """A Llama-like model (identity) or one that rewrites its text (nmt_nfkc)."""
    path = folder / f"{normalization}.model"
    path.write_bytes(_model(normalization))
    return path


def slow(folder: Path, normalization: str = "identity", *, legacy: bool = True) -> Any:
    """A Python tokenizer, without offsets."""
    path = sentencepiece_file(folder, normalization)
    tokenizer = SentencePieceBackend(
        vocab_file=str(path), legacy=legacy, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return with_special_tokens(tokenizer)


def converted(folder: Path) -> Any:
    """transformers' fast conversion of the identity model."""
    path = sentencepiece_file(folder)
    path.rename(folder / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(str(folder), add_bos_token=False)
    return with_special_tokens(tokenizer)


def with_special_tokens(tokenizer: Any) -> Any:
    tokenizer.add_tokens([*MARKS, *SPECIAL_TOKENS], special_tokens=True)
    return tokenizer
