"""Token ids together with the characters each token covers, for any tokenizer.

Label masks come from character offsets, so these must be exact where it matters: at the borders of
the answers. Three sources, the first that applies:

1. A fast tokenizer: its backend, without the post-processor. With ``add_special_tokens=False``
   post-processors change no id, but some trim white space off the offsets.
2. A Python tokenizer over sentencepiece or byte-level pieces: the pieces are laid along the text.
3. sentencepiece's own alignment, where its normalizer rewrote the text.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer
from tokenizers.processors import Sequence as ProcessorSequence

from internvl_chat.errors import ConfigError
from internvl_chat.model.constants import SPECIAL_TOKENS

logger = logging.getLogger(__name__)

_UNDERLINE: Final = "▁"
_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_PROBE: Final = "Ask: <img></img>\n  Is 3.5 < 4?\tJa, 是的。"


@dataclass(frozen=True)
class Tokens:
    """Ids of a text; token i covers the characters ``starts[i]:ends[i]``.

    Tokens of one character's bytes all cover that character; a prefix that stands for no character
    covers an empty range. All three are (T,) int64.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class TextTokenizer:
    """A Hugging Face tokenizer that also tells which characters a token covers.

    Args:
        tokenizer: fast or slow. Never changed; its truncation and padding settings are ignored.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._backend = _backend_without_trimming(tokenizer)
        self._added: dict[str, Any] = {}
        if self._backend is None:
            self._added = {str(t): t for t in tokenizer.added_tokens_decoder.values()}

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["tokenizer"])  # type: ignore[misc]

    def encode(self, text: str) -> Tokens:
        """Tokenize the whole text in one call, adding no special tokens."""
        if self._backend is not None:
            return _tokens(self._backend.encode(text, add_special_tokens=False))
        if self.tokenizer.is_fast:
            batch = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = np.asarray(batch["offset_mapping"], dtype=np.int64).reshape(-1, 2)
            ids = np.asarray(batch["input_ids"], dtype=np.int64)
            return Tokens(ids, spans[:, 0], spans[:, 1])
        pieces = self.tokenizer.tokenize(text)
        ids = self.tokenizer.convert_tokens_to_ids(pieces)
        starts, ends = self._align(text, pieces)
        return Tokens(*(np.asarray(v, dtype=np.int64) for v in (ids, starts, ends)))

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """As :meth:`encode`, in one call where the backend has one (it may use threads)."""
        if self._backend is None:
            return [self.encode(text) for text in texts]
        return [_tokens(e) for e in self._backend.encode_batch(texts, add_special_tokens=False)]

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text."""
        if self._backend is None:
            return [len(self.tokenizer.tokenize(text)) for text in texts]
        if os.environ.get("TOKENIZERS_PARALLELISM") != "false":
            # A batch would start threads, after which forking DataLoader workers draws a warning.
            return [len(self._backend.encode(t, add_special_tokens=False)) for t in texts]
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def token_id(self, token: str) -> int | None:
        """Id of a token that the tokenizer keeps in one piece, else None."""
        ids = self.encode(token).ids
        known = self.tokenizer.convert_tokens_to_ids(token)
        return int(ids[0]) if len(ids) == 1 and ids[0] == known else None

    def control_tokens(self) -> tuple[str, ...]:
        """Special tokens that text would turn into, but for those that people are meant to write.

        What begins, ends or pads a row, and what models give a meaning of their own. Image tokens,
        ``<ref>`` and ``<box>`` have rules of their own.
        """
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special}
        special.update(map(str, self.tokenizer.all_special_tokens))
        return tuple(
            token
            for token in sorted(special.difference(SPECIAL_TOKENS))
            if token.strip() and self.token_id(token) is not None
        )

    def fingerprint(self) -> str:
        """Digest of everything that decides ids; equal across processes."""
        if self._backend is not None:
            state = self._backend.to_str()
        else:
            model = getattr(self.tokenizer, "sp_model", None)
            state = repr(
                (
                    type(self.tokenizer).__name__,
                    sorted(self.tokenizer.get_vocab().items()),
                    sorted((i, repr(t)) for i, t in self.tokenizer.added_tokens_decoder.items()),
                    getattr(self.tokenizer, "legacy", None),
                    getattr(self.tokenizer, "split_special_tokens", None),
                    # The vocabulary does not show how a model normalizes and joins.
                    model and hashlib.sha256(model.serialized_model_proto()).hexdigest(),
                )
            )
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    # -- tokenizers without offsets -------------------------------------------------------------

    def _align(self, text: str, pieces: list[str]) -> tuple[list[int], list[int]]:
        """Lay pieces along the text, run by run between added tokens."""
        starts: list[int] = []
        ends: list[int] = []
        position, first = 0, 0
        for number in range(len(pieces) + 1):
            if number < len(pieces) and pieces[number] not in self._added:
                continue
            if number < len(pieces):
                border = text.find(pieces[number], position)
                if border < 0:
                    raise _no_offsets(self.tokenizer)
            else:
                border = len(text)
            run = pieces[first:number]
            spans = self._align_run(text[position:border], run)
            starts += [position + start for start, _ in spans]
            ends += [position + end for _, end in spans]
            if number < len(pieces):
                position = border + len(pieces[number])
                starts.append(border)
                ends.append(position)
            first = number + 1
        return starts, ends

    def _align_run(self, text: str, pieces: list[str]) -> list[tuple[int, int]]:
        if not pieces:
            return []  # nothing, or white space stripped at an added token
        spans = (
            _align_bytes(text, [_sentencepiece_bytes(piece) for piece in pieces])
            or _align_bytes(text, [_byte_level_bytes(piece) for piece in pieces])
            or self._align_by_sentencepiece(text, pieces)
        )
        if spans is None:
            raise _no_offsets(self.tokenizer)
        return spans

    def _align_by_sentencepiece(self, text: str, pieces: list[str]) -> list[tuple[int, int]] | None:
        """sentencepiece's own offsets, for models that rewrite the text (NFKC and the like)."""
        model = getattr(self.tokenizer, "sp_model", None)
        if model is None:
            return None
        blank = len(text) - len(text.lstrip())
        for lead in range(blank + 1):  # white space stripped at added tokens
            found = _sentencepiece_offsets(model, text[lead:])
            if [piece for piece, _, _ in found] == pieces:
                return [(lead + start, lead + end) for _, start, end in found]
        # transformers keeps a leading space by encoding behind the unknown token (legacy=False).
        unknown = str(self.tokenizer.unk_token)
        found = _sentencepiece_offsets(model, unknown + text)[len(model.encode(unknown)) :]
        if [piece for piece, _, _ in found] == pieces:
            return [(s - len(unknown), e - len(unknown)) for _, s, e in found]
        return None


def _sentencepiece_offsets(model: Any, text: str) -> list[tuple[str, int, int]]:
    """(piece, start, end) in characters."""
    try:
        mapping = model.encode(text, return_type="offset_mapping")
    except TypeError:  # before sentencepiece 0.2.2
        proto = model.encode(text, out_type="immutable_proto")
        return [(piece.piece, piece.begin, piece.end) for piece in proto.pieces]
    return [(p, *span) for p, span in zip(mapping["pieces"], mapping["offsets"], strict=True)]


def _backend_without_trimming(tokenizer: Any) -> Tokenizer | None:
    """A private copy of a fast tokenizer's backend; None where it would give other ids."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = ProcessorSequence([])
    backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    theirs = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if backend.encode(_PROBE, add_special_tokens=False).ids == list(theirs):
        return backend
    logger.info("%s rewrites its input; using it as it is", type(tokenizer).__name__)
    return None


def _tokens(encoding: Any) -> Tokens:
    spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return Tokens(np.array(encoding.ids, dtype=np.int64), spans[:, 0], spans[:, 1])


def _no_offsets(tokenizer: Any) -> ConfigError:
    return ConfigError(
        f"{type(tokenizer).__name__} gives no character offsets and its pieces do not spell the "
        "text, so answers cannot be told from questions",
        fix="Use a fast or a sentencepiece tokenizer (use_fast=True).",
    )


def _sentencepiece_bytes(piece: str) -> bytes:
    match = _BYTE_PIECE.match(piece)
    if match:
        return bytes([int(match[1], 16)])
    return piece.replace(_UNDERLINE, " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    table.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return table


_ALPHABET: Final = _byte_level_alphabet()


def _byte_level_bytes(piece: str) -> bytes | None:
    try:
        return bytes(_ALPHABET[character] for character in piece)
    except KeyError:
        return None


def _align_bytes(text: str, pieces: Sequence[bytes | None]) -> list[tuple[int, int]] | None:
    """Spans in characters if the pieces, joined, spell the text; None if they do not.

    White space in the text that no piece holds is skipped; a leading space of a piece that the
    text lacks is sentencepiece's dummy prefix.
    """
    raw = text.encode()
    spans: list[tuple[int, int]] = []
    position = 0
    for piece in pieces:
        if piece is None:
            return None
        fits = raw.startswith(piece, position)
        if not fits and piece.startswith(b" ") and raw.startswith(piece[1:], position):
            piece = piece[1:]
        while not raw.startswith(piece, position) and raw[position : position + 1].isspace():
            position += 1
        if not raw.startswith(piece, position):
            return None
        spans.append((position, position + len(piece)))
        position += len(piece)
    if raw[position:].strip():
        return None
    return _bytes_to_characters(text, raw, spans)


def _bytes_to_characters(
    text: str, raw: bytes, spans: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    if len(raw) == len(text):
        return spans
    data = np.frombuffer(raw, dtype=np.uint8)
    begins = (data & 0xC0) != 0x80  # first byte of a character
    number = np.cumsum(begins) - 1  # character that a byte belongs to
    found = []
    for start, end in spans:
        first = int(number[start]) if start < len(raw) else len(text)
        found.append((first, int(number[end - 1]) + 1 if end > start else first))
    return found
