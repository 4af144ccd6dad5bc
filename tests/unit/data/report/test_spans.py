"""What of a text is supervised is what has labels: token by token, whatever the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl_chat.data.encode import Encoded, Encoder
from internvl_chat.data.report.spans import NO_MARK, TextPiece, text_pieces
from internvl_chat.model.constants import IGNORE_INDEX
from tests.support import tokenizers
from tests.support.configs import encode_config
from tests.unit.data.test_encode import KINDS, TEXTS, make


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return make(request.param, tmp_path)


def encoder(tokenizer: Any, **changes: Any) -> Encoder:
    values = {"num_image_token": 3, "system_message": "S.", **changes}
    return Encoder(tokenizer, encode_config(**values))


def shown(pieces: list[TextPiece]) -> list[tuple[str, str, bool, int]]:
    return [(one.text, one.kind, one.is_special, one.times) for one in pieces]


def spelled(pieces: list[TextPiece]) -> str:
    return "".join(one.text * one.times for one in pieces)


def test_a_conversation_in_pieces(tokenizer: Any) -> None:
    one = encoder(tokenizer)
    encoded = one.encode([("<image>\nWhat?", " red"), ("And?", "blue")], [2])
    assert shown(text_pieces(one, encoded)) == [
        ("<|im_start|>", "prompt", True, 1),
        ("system\nS.", "prompt", False, 1),
        ("<|im_end|>", "prompt", True, 1),
        ("<|im_start|>", "prompt", True, 1),
        ("user\n", "prompt", False, 1),
        ("<img>", "prompt", True, 1),
        ("<IMG_CONTEXT>", "prompt", True, 6),
        ("</img>", "prompt", True, 1),
        ("\nWhat?", "prompt", False, 1),
        ("<|im_end|>", "prompt", True, 1),
        ("<|im_start|>", "prompt", True, 1),
        ("assistant\n", "prompt", False, 1),
        (" red", "supervised", False, 1),
        ("<|im_end|>", "supervised", True, 1),
        ("<|im_start|>", "prompt", True, 1),
        ("user\nAnd?", "prompt", False, 1),
        ("<|im_end|>", "prompt", True, 1),
        ("<|im_start|>", "prompt", True, 1),
        ("assistant\n", "prompt", False, 1),
        ("blue", "supervised", False, 1),
        ("<|im_end|>", "supervised", True, 1),
    ]


def test_every_character_has_the_label_of_its_token(tokenizer: Any) -> None:
    one = encoder(tokenizer)
    for answer in (text for text in TEXTS if "</s>" not in text):
        encoded = one.encode([("Question  ", answer), ("前\n", "后")])
        pieces = text_pieces(one, encoded)
        assert spelled(pieces) == encoded.text
        kinds = [piece.kind for piece in pieces for _ in piece.text * piece.times]
        tokens = one.tokens.encode(encoded.text)
        assert tokens.ids.tolist() == encoded.input_ids.tolist()
        learned, given = set[int](), set[int]()
        for start, end, label in zip(tokens.starts, tokens.ends, encoded.labels, strict=True):
            (given if label == IGNORE_INDEX else learned).update(range(start, end))
        assert {i for i, kind in enumerate(kinds) if kind == "supervised"} == learned
        assert given <= {i for i, kind in enumerate(kinds) if kind == "prompt"}


def test_what_is_cut_off(tokenizer: Any) -> None:
    whole = encoder(tokenizer).encode([("Q", "an answer 你好 that goes on")])
    for kept in range(len(whole.input_ids) - 12, len(whole.input_ids)):
        one = encoder(tokenizer, max_seq_length=kept)
        encoded = one.encode([("Q", "an answer 你好 that goes on")])
        pieces = text_pieces(one, encoded)
        assert spelled(pieces) == encoded.text
        assert pieces[-1].kind == "cut"
        first = next(number for number, piece in enumerate(pieces) if piece.kind == "cut")
        assert {piece.kind for piece in pieces[first:]} == {"cut"}
        learned = "".join(one.text for one in pieces if one.kind == "supervised")
        tokens = one.tokens.encode(encoded.text)
        learned_ids = tokens.ids[:kept][encoded.labels != IGNORE_INDEX].tolist()
        assert learned.strip() == tokenizer.decode(learned_ids).strip(" \ufffd") or "\ufffd" in (
            tokenizer.decode(learned_ids)
        )


def test_a_token_across_the_border_is_supervised_whole() -> None:
    """The byte-level tokenizer has one token for two line ends."""
    one = encoder(tokenizers.byte_level())
    encoded = one.encode([("Q", "\n\nanswer")])
    learned = [piece.text for piece in text_pieces(one, encoded) if piece.kind == "supervised"]
    assert learned == ["\n\n\nanswer", "<|im_end|>"]


def test_marked_stretches_are_told_apart(tokenizer: Any) -> None:
    one = encoder(tokenizer)
    encoded = one.encode([("Where?", "at <box>[[1, 2, 3, 4]]</box> and [0.1, 0.2, 0.3, 0.4].")])
    spans = []
    for text in ("<box>[[1, 2, 3, 4]]</box>", "[0.1, 0.2, 0.3, 0.4]"):
        begin = encoded.text.index(text)
        spans.append((begin, begin + len(text)))
    pieces = text_pieces(one, encoded, spans)
    assert spelled(pieces) == encoded.text
    for number, (start, end) in enumerate(spans):
        marked = "".join(piece.text for piece in pieces if piece.mark == number)
        assert marked == encoded.text[start:end]
    rest = "".join(piece.text for piece in pieces if piece.mark == NO_MARK)
    assert rest.endswith("at  and .<|im_end|>")


def test_the_beginning_of_a_sequence(tmp_path: Path) -> None:
    tokenizer = tokenizers.slow(tmp_path)
    one = encoder(tokenizer, conv_style="internlm2-chat")
    encoded = one.encode([("Q", "answer")])
    assert one.template.bos_in_training
    pieces = text_pieces(one, encoded)
    assert shown(pieces)[0] == ("<s>", "prompt", True, 1)
    assert spelled(pieces) == encoded.text
    assert encoded.input_ids[0] == tokenizer.bos_token_id


def test_ids_that_the_text_does_not_give_are_decoded() -> None:
    tokenizer = tokenizers.byte_level()
    one = encoder(tokenizer)
    encoded = one.encode([("<image>Q", "answer")], [1])
    other = Encoded(encoded.input_ids, encoded.labels, "something else", False)
    decoded = text_pieces(one, other)
    assert spelled(decoded) == encoded.text
    assert [p.text for p in decoded if p.kind == "supervised"] == ["answer", "<|im_end|>"]
    assert [p.times for p in decoded if p.text == "<IMG_CONTEXT>"] == [3]


def test_words_that_a_tokenizer_keeps_whole_are_text() -> None:
    tokenizer = tokenizers.byte_level()
    tokenizer.add_tokens(["answer"])
    one = encoder(tokenizer)
    pieces = text_pieces(one, one.encode([("Q", "answer")]))
    assert [p.is_special for p in pieces if p.kind == "supervised"] == [False, True]
    assert np.all([p.text != "answer" or not p.is_special for p in pieces])
