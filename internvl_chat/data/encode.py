"""Conversation + template + tokenizer -> token ids and labels.

Pure: opens no file and knows no rank. The ids are those of tokenizing the whole rendered string in
one call; an image's placeholders are tokenized once and then repeated, which is the same because
tokenizers split at special tokens before anything else. A token is labelled if it covers any
character of an answer or of the end-of-turn mark behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from internvl_chat.config import EncodeConfig
from internvl_chat.data.schema import BadRecordError
from internvl_chat.data.tokenization import TextTokenizer, Tokens
from internvl_chat.errors import ConfigError
from internvl_chat.model.constants import (
    IGNORE_INDEX,
    IMAGE_TAG,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)
from internvl_chat.model.conversation import Rendered, Span, Template
from internvl_chat.model.templates import find_template

_ONE_IMAGE = f"{IMG_START_TOKEN}{IMG_CONTEXT_TOKEN}{IMG_END_TOKEN}"
_CHARACTERS_A_TOKEN = 32
"""A text of fewer for each token of the longest sample is tokenized as it is."""
_MARGIN_TOKENS = 256
"""What more of a longer text is tokenized, so that its end changes nothing of what is kept."""
_MARK = re.compile(r"<\|[^<>|\s]+\|>")

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Encoded:
    """One conversation, ready for the model."""

    input_ids: np.ndarray
    """(T,) int64."""
    labels: np.ndarray
    """(T,) int64; IGNORE_INDEX where nothing is supervised."""
    text: str
    """The rendered string, placeholders included, also where the ids were cut; not what lies far
    beyond the cut."""
    truncated: bool


class Encoder:
    """Encodes conversations with one tokenizer and one template.

    Raises:
        ConfigError: unknown template, or the tokenizer does not know the image tokens.
    """

    def __init__(self, tokenizer: object, config: EncodeConfig) -> None:
        self.config = config
        self.template = find_template(config.conv_style)
        self.tokens = (
            tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer)
        )
        ids = {
            token: self.tokens.token_id(token)
            for token in (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)
        }
        missing = [token for token, token_id in ids.items() if token_id is None]
        if missing:
            raise ConfigError(
                f"the tokenizer does not keep {' '.join(missing)} in one piece",
                fix="Add the special tokens to it (checkpoint.add_special_tokens).",
            )
        self._context_id = ids[IMG_CONTEXT_TOKEN]
        self._marks = dict.fromkeys(self.tokens.control_tokens(), "the tokenizer")
        self._marks |= marks_of(self.template)
        self._bos_id: int | None = None
        self._bos_text = ""
        if self.template.bos_in_training:
            self._bos_id = self.tokens.tokenizer.bos_token_id
            self._bos_text = self.tokens.tokenizer.bos_token or ""

    def render(self, turns: Turns, *, system: str | None = None, where: str = "") -> Rendered:
        """Write the conversation with ONE placeholder per image.

        Raises:
            BadRecordError: the text holds a control token of the template or the tokenizer, or an
                image far beyond ``max_seq_length``.
        """
        template = self.template
        refuse_marks(turns, system, self._marks, where=where)
        placed = [(question.replace(IMAGE_TAG, _ONE_IMAGE), answer) for question, answer in turns]
        message = self.config.system_message if system is None else system
        return self._shortened(template.render(placed, message), where)

    def _shortened(self, rendered: Rendered, where: str) -> Rendered:
        """Without the end of a text far beyond ``max_seq_length``, which would only cost memory.

        Tokens depend on the text near them, so that of the beginning the same ids are kept.

        Raises:
            BadRecordError: an image stands in what is left out.
        """
        text, limit = rendered.text, self.config.max_seq_length
        size = _CHARACTERS_A_TOKEN * (limit + _MARGIN_TOKENS)
        while size < len(text) and self._count(text[:size]) <= limit + _MARGIN_TOKENS:
            size *= 4
        if size >= len(text):
            return rendered
        if text.find(IMG_CONTEXT_TOKEN, size - len(IMG_CONTEXT_TOKEN)) >= 0:
            raise self._image_cut(f"more than {limit}", where)
        answers = [Span(one.start, min(one.end, size)) for one in rendered.answers]
        return Rendered(text[:size], tuple(one for one in answers if one.start < one.end))

    def _count(self, text: str) -> int:
        return self.tokens.count_batch([text])[0]

    def _image_cut(self, num_tokens: str, where: str) -> BadRecordError:
        return BadRecordError(
            "IMAGE_CUT",
            f"{num_tokens} tokens, and cutting to {self.config.max_seq_length} would remove image "
            "tokens",
            where=where,
            fix="Raise --max_seq_length, or use fewer images or tiles.",
        )

    def encode(
        self,
        turns: Turns,
        num_tiles: Sequence[int] = (),
        *,
        system: str | None = None,
        where: str = "",
    ) -> Encoded:
        """Encode one conversation.

        Args:
            turns: (question, answer) pairs; ``<image>`` tags in the questions, reading order.
            num_tiles: tiles of each image.
            system: the record's own system message.
            where: ``file:line``, for messages.

        Raises:
            BadRecordError: tags and images differ in number, a control token in the text, or
                truncation would cut an image or leave no label.
        """
        rendered = self.render(turns, system=system, where=where)
        return self._finish(rendered, self.tokens.encode(rendered.text), num_tiles, where)

    def lengths(
        self,
        rendered: Sequence[Rendered],
        num_tiles: Sequence[Sequence[int]],
        wheres: Sequence[str],
    ) -> list[tuple[int, bool] | BadRecordError]:
        """Ids and whether they were cut, for many conversations; exactly what encode gives."""
        counts = self.tokens.count_batch([one.text for one in rendered])
        limit = self.config.max_seq_length
        found: list[tuple[int, bool] | BadRecordError] = []
        for one, tiles, where, count in zip(rendered, num_tiles, wheres, counts, strict=True):
            total = count + sum(tiles) * self.config.num_image_token - len(tiles)
            total += self._bos_id is not None
            if total <= limit and one.text.count(IMG_CONTEXT_TOKEN) == len(tiles):
                found.append((total, False))
                continue
            try:  # rare: cut or wrong, so look closely
                encoded = self._finish(one, self.tokens.encode(one.text), tiles, where)
                found.append((len(encoded.input_ids), encoded.truncated))
            except BadRecordError as err:
                found.append(err)
        return found

    def _finish(
        self, rendered: Rendered, tokens: Tokens, num_tiles: Sequence[int], where: str
    ) -> Encoded:
        labels = _label(rendered, tokens)
        ids, labels = self._repeat_placeholders(tokens.ids, labels, num_tiles, where)
        if self._bos_id is not None:
            ids = np.concatenate([[self._bos_id], ids])
            labels = np.concatenate([[IGNORE_INDEX], labels])
        limit = self.config.max_seq_length
        truncated = len(ids) > limit
        if truncated:
            if (ids[limit:] == self._context_id).any():
                raise self._image_cut(str(len(ids)), where)
            ids, labels = ids[:limit], labels[:limit]
        if not (labels[1:] != IGNORE_INDEX).any():
            raise BadRecordError(
                "NO_LABEL",
                f"no token to learn is left within max_seq_length {limit}",
                where=where,
                fix="Raise --max_seq_length or shorten the question.",
            )
        text = self._bos_text * (self._bos_id is not None) + self._full_text(rendered, num_tiles)
        return Encoded(ids, labels, text, truncated)

    def _repeat_placeholders(
        self, ids: np.ndarray, labels: np.ndarray, num_tiles: Sequence[int], where: str
    ) -> tuple[np.ndarray, np.ndarray]:
        slots = np.flatnonzero(ids == self._context_id)
        if len(slots) != len(num_tiles):
            raise BadRecordError(
                "TAG_MISMATCH",
                f"{len(slots)} <image> placeholders, {len(num_tiles)} images",
                where=where,
            )
        if len(slots) == 0:
            return ids, labels
        times = np.ones(len(ids), dtype=np.int64)
        times[slots] = np.asarray(num_tiles) * self.config.num_image_token
        return np.repeat(ids, times), np.repeat(labels, times)

    def _full_text(self, rendered: Rendered, num_tiles: Sequence[int]) -> str:
        pieces = rendered.text.split(IMG_CONTEXT_TOKEN)
        text = [pieces[0]]
        for tiles, piece in zip(num_tiles, pieces[1:], strict=True):
            text += [IMG_CONTEXT_TOKEN * (tiles * self.config.num_image_token), piece]
        return "".join(text)


def _label(rendered: Rendered, tokens: Tokens) -> np.ndarray:
    """(T,) ids under the answers, IGNORE_INDEX elsewhere."""
    labels = np.full_like(tokens.ids, IGNORE_INDEX)
    # An empty token (a dummy prefix) belongs to the character it stands before.
    ends = np.maximum(tokens.ends, tokens.starts + 1)
    for answer in rendered.answers:
        inside = (ends > answer.start) & (tokens.starts < answer.end)
        labels[inside] = tokens.ids[inside]
    return labels


def refuse_marks(turns: Turns, system: str | None, marks: Mapping[str, str], *, where: str) -> None:
    """Refuse control tokens in what people wrote: a model must not learn to end inside an answer.

    Args:
        turns: (question, answer) pairs.
        system: the record's own system message.
        marks: control token -> whose it is.
        where: ``file:line``, for messages.

    Raises:
        BadRecordError: the text holds one.
    """
    for text in (*chain.from_iterable(turns), system or ""):
        for mark, owner in marks.items():
            if mark in text:
                raise BadRecordError(
                    "CONTROL_TOKEN",
                    f"the text holds {mark}, a control token of {owner}",
                    where=where,
                    fix="Remove or spell it differently.",
                )


def marks_of(template: Template) -> dict[str, str]:
    """A template's control tokens for :func:`refuse_marks`."""
    return dict.fromkeys(template_marks(template), f"template {template.name}")


@lru_cache(maxsize=32)
def template_marks(template: Template) -> tuple[str, ...]:
    """Strings of the template that must not occur in what people wrote."""
    parts = (template.system_template, *template.roles, template.question_sep, template.answer_sep)
    found = chain.from_iterable(_MARK.findall(part) for part in parts)
    return tuple(dict.fromkeys([template.stop_str, *found]))
