"""Train the tiny model's sentencepiece tokenizer on the demo text and save it for transformers.

The result is a Llama-style BPE with byte fallback: any text encodes. Whole upper-case words are
kept out of the training text, so that what is printed on signs is spelled letter by letter.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
from transformers import AddedToken, LlamaTokenizer

from examples.tiny_model.records import FAMILIES, make_sample
from internvl_chat.model.conversation import get_conv_template

logger = logging.getLogger(__name__)

VOCAB_SIZE = 960
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>")
# Fixed parts of every prompt, one token each: the default system message alone is 53 characters
# outside the demo's alphabet, which would be 150 byte tokens in front of every question.
TEMPLATE_PIECES = ("system\n", "user\n", "assistant\n", "\n", "[[", "]]")
_TEXT_RECORDS = 1500
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space


def demo_text(seed: int, *, records: int = _TEXT_RECORDS) -> Iterator[str]:
    """Questions and answers of the first records of every family, without printed words."""
    for family in FAMILIES:
        for index in range(records):
            sample = make_sample(seed, family, "train", index)
            if sample.description:
                yield sample.description
            for question in sample.questions:
                yield question.text
                yield question.answer


def _lines_for_training(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        words = [word for word in text.split() if not word.strip(".?!,").isupper()]
        yield " ".join(word for word in words if "<" not in word and "[" not in word)


def train_tokenizer(directory: Path, *, seed: int, vocab_size: int = VOCAB_SIZE) -> LlamaTokenizer:
    """Write ``tokenizer.model`` and the fast tokenizer's files into ``directory``.

    Args:
        directory: created if missing.
        seed: seed of the generator; the text is a function of it.
        vocab_size: pieces before the special tokens that training adds.

    Returns:
        The tokenizer: no BOS is added, padding with ``</s>``, ``<|im_end|>`` ends a turn.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pieces = [*CONTROL_TOKENS, get_conv_template("Hermes-2").system_message, *TEMPLATE_PIECES]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines_for_training(demo_text(seed)),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        required_chars="".join(chr(c) for c in range(33, 127)),
        user_defined_symbols=[piece.replace(" ", _SPACE) for piece in pieces],
        num_threads=1,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()
    model_file = directory / "tokenizer.model"
    vocab, merges = _pieces_and_merges(model_file)
    # Added tokens are looked for in the raw text, before spaces are rewritten.
    vocab = {_raw(piece, pieces): i for piece, i in vocab.items()}
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=merges,
        add_prefix_space=False,
        add_bos_token=False,
        eos_token="<|im_end|>",
        pad_token="</s>",
    )
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in pieces[len(CONTROL_TOKENS) :]])
    tokenizer.save_pretrained(directory)
    logger.info("tokenizer: %d pieces in %s", len(tokenizer), directory)
    return tokenizer


def _raw(piece: str, fixed: Sequence[str]) -> str:
    raw = piece.replace(_SPACE, " ")
    return raw if raw in fixed else piece


def _pieces_and_merges(model_file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary of a sentencepiece BPE model and the merges that give the same segmentation.

    sentencepiece joins the pair whose joined piece comes first in the vocabulary, so every way of
    splitting a piece into two others is a merge, ordered by the joined piece.
    """
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    joinable = {
        p for i, p in enumerate(pieces) if not (model.is_byte(i) or model.is_control(i) or i == 0)
    }
    merges = []
    for piece in pieces:
        if piece not in joinable:
            continue
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in splits if a in joinable and b in joinable]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return vocab, merges
