"""The text of an encoded conversation, cut where its labels, special tokens or boxes change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Final, Literal

import numpy as np

from internvl_chat.data.encode import Encoded, Encoder
from internvl_chat.data.tokenization import Tokens
from internvl_chat.model.constants import IGNORE_INDEX

PieceKind = Literal["prompt", "supervised", "cut"]
KINDS: Final[tuple[PieceKind, ...]] = ("prompt", "supervised", "cut")
_PROMPT, _SUPERVISED, _CUT = range(len(KINDS))
NO_MARK: Final = -1


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """A stretch of text of which all is the same."""

    text: str
    kind: PieceKind
    """Given, to be learned, or beyond ``max_seq_length``."""
    is_special: bool
    """One token that the tokenizer keeps whole: a mark of template, image or box."""
    times: int
    """How often it comes in a row; more than once for special tokens only."""
    mark: int
    """Number of the marked stretch that it lies in; NO_MARK outside."""


def text_pieces(
    encoder: Encoder, encoded: Encoded, marked: Sequence[tuple[int, int]] = ()
) -> list[TextPiece]:
    """Cut the text by the tokens' labels.

    A character is supervised if a token that covers it has a label: what is not whole tokens
    cannot be learned alone, so a token across the border of an answer shows as supervised whole.

    Args:
        encoder: that made it.
        encoded: the conversation.
        marked: stretches ``text[start:end]`` to be told apart, not overlapping.

    Returns:
        Pieces that spell ``encoded.text``.
    """
    tokens = _aligned(encoder, encoded)
    if tokens is None:  # the text does not tokenize to these ids: go by the ids
        return _decoded(encoder, encoded)
    kinds = _character_kinds(encoded, tokens)
    marks = np.full(len(encoded.text), NO_MARK)
    for number, (start, end) in enumerate(marked):
        marks[start:end] = number
    special_ids = _special_ids(encoder)
    pieces: list[TextPiece] = []
    position = 0
    for token, start, end in zip(tokens.ids, tokens.starts, tokens.ends, strict=True):
        if int(token) not in special_ids or end <= start:
            continue
        pieces += _plain(encoded.text, kinds, marks, position, start)
        special = TextPiece(
            text=encoded.text[start:end],
            kind=KINDS[kinds[start]],
            is_special=True,
            times=1,
            mark=int(marks[start]),
        )
        _append(pieces, special)
        position = int(end)
    pieces += _plain(encoded.text, kinds, marks, position, len(encoded.text))
    return pieces


def _special_ids(encoder: Encoder) -> set[int]:
    """Tokens that are marks; what a tokenizer keeps whole beside them (words, say) is text."""
    added = encoder.tokens.tokenizer.added_tokens_decoder
    return {number for number, token in added.items() if token.special}


def _append(pieces: list[TextPiece], special: TextPiece) -> None:
    """Count a special token that follows an equal one."""
    last = pieces[-1] if pieces else None
    if last is None or not last.is_special:
        pieces.append(special)
        return
    same = (last.text, last.kind, last.mark) == (special.text, special.kind, special.mark)
    if same:
        pieces[-1] = TextPiece(
            text=last.text, kind=last.kind, is_special=True, times=last.times + 1, mark=last.mark
        )
    else:
        pieces.append(special)


def _aligned(encoder: Encoder, encoded: Encoded) -> Tokens | None:
    """Which characters each token covers; None if the text gives other ids."""
    tokenizer: Any = encoder.tokens.tokenizer
    begin = (tokenizer.bos_token or "") if encoder.template.bos_in_training else ""
    if not encoded.text.startswith(begin):
        return None
    tokens = encoder.tokens.encode(encoded.text[len(begin) :])
    if begin:  # stands before the ids of the text, whatever the tokenizer makes of it there
        tokens = Tokens(
            np.concatenate([[tokenizer.bos_token_id], tokens.ids]),
            np.concatenate([[0], tokens.starts + len(begin)]),
            np.concatenate([[len(begin)], tokens.ends + len(begin)]),
        )
    same = np.array_equal(tokens.ids[: len(encoded.input_ids)], encoded.input_ids)
    return tokens if same else None


def _character_kinds(encoded: Encoded, tokens: Tokens) -> np.ndarray:
    """(characters,) index into KINDS."""
    num_kept = len(encoded.input_ids)
    kinds = np.full(len(encoded.text), _PROMPT, dtype=np.int8)
    for start, end in zip(tokens.starts[num_kept:], tokens.ends[num_kept:], strict=True):
        kinds[start:end] = _CUT
    # After the cut tokens: of a character whose bytes are several tokens the kept ones count.
    for start, end, label in zip(
        tokens.starts[:num_kept], tokens.ends[:num_kept], encoded.labels, strict=True
    ):
        kinds[start:end] = _PROMPT if label == IGNORE_INDEX else _SUPERVISED
    return kinds


def _plain(
    text: str, kinds: np.ndarray, marks: np.ndarray, start: int, end: int
) -> Iterator[TextPiece]:
    """Stretches of one kind and mark."""
    if start >= end:
        return
    changes = (np.diff(kinds[start:end]) != 0) | (np.diff(marks[start:end]) != 0)
    borders = [start, *(np.flatnonzero(changes) + start + 1).tolist(), end]
    for begin, stop in pairwise(borders):
        yield TextPiece(
            text=text[begin:stop],
            kind=KINDS[kinds[begin]],
            is_special=False,
            times=1,
            mark=int(marks[begin]),
        )


def _decoded(encoder: Encoder, encoded: Encoded) -> list[TextPiece]:
    """Decoded ids, run by run; text that was cut off is left out, boxes are not marked."""
    tokenizer: Any = encoder.tokens.tokenizer
    special_ids = _special_ids(encoder)

    def run_of(pair: tuple[int, int]) -> tuple[bool, int | None]:
        token, label = pair
        return label != IGNORE_INDEX, token if token in special_ids else None

    pairs = zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True)
    pieces = []
    for (supervised, special), run in groupby(pairs, key=run_of):
        ids = [token for token, _ in run]
        shown = ids if special is None else ids[:1]
        piece = TextPiece(
            text=tokenizer.decode(shown, skip_special_tokens=False),
            kind=KINDS[_SUPERVISED if supervised else _PROMPT],
            is_special=special is not None,
            times=1 if special is None else len(ids),
            mark=NO_MARK,
        )
        pieces.append(piece)
    return pieces
