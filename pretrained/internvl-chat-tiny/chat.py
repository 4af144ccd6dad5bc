"""Chat with the model: prompt, stop ids, decoding, ``chat`` and ``batch_chat``.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .constants import IMAGE_TAG, IMG_CONTEXT_TOKEN, IMG_END_TOKEN, IMG_START_TOKEN
from .conversation import ConversationTemplate

logger = logging.getLogger(__name__)

DEFAULT_TEMPLATE = "Hermes-2"


class ChatMixin:
    """``chat`` and ``batch_chat`` of a model that can generate."""

    conv_template: ConversationTemplate
    system_message: str
    img_context_token_id: int | None
    device: torch.device
    config: Any

    @property
    def num_image_token(self) -> int:
        """Tokens that stand for one tile."""
        raise NotImplementedError

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Continue text with images."""
        raise NotImplementedError

    def chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        question: str,
        generation_config: dict[str, Any],
        history: Sequence[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answer one question.

        Args:
            tokenizer: the checkpoint's.
            pixel_values: (N, 3, S, S), the tiles of all images of history and question.
            question: ``<image>`` stands for an image; put before the first question if it is
                missing there and everywhere else.
            generation_config: keywords of ``generate``, a ``streamer`` included; not changed.
            history: earlier (question, answer) pairs; not changed.
            return_history: return the pairs, this one included, as well.
            num_patches_list: tiles of each image; all to one by default.
            IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN: what an image is written with.
            verbose: log prompt and answer.

        Raises:
            ValueError: tiles, ``num_patches_list`` and ``<image>`` tags do not agree, or the prompt
                leaves no room for an answer.
        """
        answers, histories = self._answer(
            tokenizer,
            pixel_values,
            [question],
            generation_config,
            [list(history or [])],
            [_tiles_of_one(pixel_values, num_patches_list)],
            (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN),
            verbose,
        )
        return (answers[0], histories[0]) if return_history else answers[0]

    def batch_chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        questions: Sequence[str],
        generation_config: dict[str, Any],
        num_patches_list: Sequence[int | Sequence[int]] | None = None,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        return_history: bool = False,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
        image_counts: Sequence[int | Sequence[int]] | None = None,
    ) -> list[str] | tuple[list[str], list[list[tuple[str, str]]]]:
        """Answer several questions at once; greedy answers are those of :meth:`chat`.

        Args:
            pixel_values: (N, 3, S, S), tiles in the order of the questions.
            num_patches_list: for each question its number of tiles (one image; 0 for none), or
                a list with the tiles of each of its images. By default the tiles are shared
                out evenly, one image per question.
            history: for each question its earlier pairs.
            image_counts: former name of ``num_patches_list``.

        Other arguments are those of :meth:`chat`.

        Raises:
            ValueError: numbers of questions, tiles and ``<image>`` tags do not agree, both names
                are used, or a prompt leaves no room for an answer.
        """
        if image_counts is not None:
            if num_patches_list is not None:
                raise ValueError("give num_patches_list or its former name image_counts, not both")
            num_patches_list = image_counts
        answers, histories = self._answer(
            tokenizer,
            pixel_values,
            list(questions),
            generation_config,
            _histories(history, len(questions)),
            _tiles_of_many(pixel_values, num_patches_list, len(questions)),
            (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN),
            verbose,
        )
        return (answers, histories) if return_history else answers

    def _answer(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        questions: list[str],
        generation_config: dict[str, Any],
        histories: list[list[tuple[str, str]]],
        tiles: list[list[int]],
        image_tokens: tuple[str, str, str],
        verbose: bool,
    ) -> tuple[list[str], list[list[tuple[str, str]]]]:
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(image_tokens[1])
        rows, asked = [], []
        for question, history, counts in zip(questions, histories, tiles, strict=True):
            turns = _with_image_tag(history, question, bool(counts))
            prompt = self.conv_template.render(turns, self.system_message).text
            prompt = expand_image_tags(prompt, counts, self.num_image_token, image_tokens)
            ids = prompt_ids(tokenizer, prompt, self.conv_template.bos_in_training)
            self._require_room(len(ids))
            rows.append(ids)
            asked.append(turns)
            if verbose:
                logger.info("prompt: %s", prompt)
        input_ids, attention_mask = _pad_left(rows, pad_id(tokenizer), self.device)
        settings = dict(generation_config)
        settings.setdefault("pad_token_id", pad_id(tokenizer))
        settings.update(stop_settings(tokenizer, self.conv_template.stop_str, settings))
        output = self.generate(pixel_values, input_ids, attention_mask, **settings)
        sequences = getattr(output, "sequences", output)
        stop = (self.conv_template.stop_str,)
        answers = [decode_answer(tokenizer, row.tolist(), stop) for row in sequences]
        for answer in answers if verbose else ():
            logger.info("answer: %s", answer)
        done = [
            [(q, a) for q, a in turns[:-1] if a is not None] + [(turns[-1][0], answer)]
            for turns, answer in zip(asked, answers, strict=True)
        ]
        return answers, done

    def _require_room(self, num_tokens: int) -> None:
        """Beyond the trained positions a model answers nothing, or nonsense, without a word."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(limit, int) and num_tokens >= limit:
            raise ValueError(
                f"the prompt has {num_tokens} tokens, and the model's maximum context length is "
                f"{limit} tokens, answer included. Ask with less text, fewer images or fewer frames"
            )


def _tiles_of_one(pixel_values: Tensor | None, num_patches_list: Sequence[int] | None) -> list[int]:
    """Tiles of each image of one conversation."""
    num_tiles = 0 if pixel_values is None else len(pixel_values)
    if num_patches_list is None:
        return [num_tiles] if num_tiles else []
    if sum(num_patches_list) != num_tiles:
        raise ValueError(
            f"num_patches_list {list(num_patches_list)} sums to {sum(num_patches_list)}, but "
            f"pixel_values holds {num_tiles} tiles"
        )
    return list(num_patches_list)


def _tiles_of_many(
    pixel_values: Tensor | None,
    num_patches_list: Sequence[int | Sequence[int]] | None,
    num_questions: int,
) -> list[list[int]]:
    """Tiles of each image of each conversation."""
    num_tiles = 0 if pixel_values is None else len(pixel_values)
    if num_patches_list is None:
        if num_questions and num_tiles % num_questions:
            raise ValueError(
                f"{num_tiles} tiles do not go evenly over {num_questions} questions. Give "
                "num_patches_list, one entry per question"
            )
        share = num_tiles // max(num_questions, 1)
        return [[share] if share else []] * num_questions
    if len(num_patches_list) != num_questions:
        raise ValueError(
            f"num_patches_list has {len(num_patches_list)} entries for {num_questions} questions"
        )
    tiles = [
        [entry] * bool(entry) if isinstance(entry, int) else list(entry)
        for entry in num_patches_list
    ]
    if sum(map(sum, tiles)) != num_tiles:
        raise ValueError(
            f"num_patches_list {list(num_patches_list)} sums to {sum(map(sum, tiles))}, but "
            f"pixel_values holds {num_tiles} tiles"
        )
    return tiles


def _histories(
    history: Sequence[Sequence[tuple[str, str]]] | None, num_questions: int
) -> list[list[tuple[str, str]]]:
    if history is None:
        return [[] for _ in range(num_questions)]
    if len(history) != num_questions:
        raise ValueError(f"history has {len(history)} entries for {num_questions} questions")
    return [list(pairs) for pairs in history]


def _with_image_tag(
    history: Sequence[tuple[str, str]], question: str, has_images: bool
) -> list[tuple[str, str | None]]:
    """The turns, ``<image>`` put before the first question if images came without a tag."""
    turns: list[tuple[str, str | None]] = [*history, (question, None)]
    if has_images and not any(IMAGE_TAG in asked for asked, _ in turns):
        turns[0] = (f"{IMAGE_TAG}\n{turns[0][0]}", turns[0][1])
    return turns


def expand_image_tags(
    prompt: str, tiles: Sequence[int], num_image_token: int, tokens: tuple[str, str, str]
) -> str:
    """Write each ``<image>`` as start, K context tokens per tile, end.

    Args:
        prompt: rendered by a template.
        tiles: of each image, reading order.
        num_image_token: K.
        tokens: start, context and end of an image.

    Raises:
        ValueError: another number of tags than of images.
    """
    pieces = prompt.split(IMAGE_TAG)
    if len(pieces) - 1 != len(tiles):
        raise ValueError(
            f"{len(pieces) - 1} {IMAGE_TAG} tags in history and question, but tiles for "
            f"{len(tiles)} images: {list(tiles)}. Check pixel_values and num_patches_list"
        )
    start, context, end = tokens
    text = pieces[0]
    for count, piece in zip(tiles, pieces[1:], strict=True):
        text += start + context * (num_image_token * count) + end + piece
    return text


def prompt_ids(tokenizer: Any, prompt: str, bos: bool) -> list[int]:
    """Ids as in training: of the whole string at once, BOS only where the template has one."""
    # Not verbose: transformers would warn of a length that the caller looks at anyway.
    ids = list(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
    if bos and tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id, *ids]
    return ids


def pad_id(tokenizer: Any) -> int:
    """What rows are padded with: the padding token, else the end token, else 0 (it is masked)."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    return 0


def _pad_left(
    rows: Sequence[list[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B, T) ids and attention mask."""
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def stop_settings(tokenizer: Any, stop_str: str, given: dict[str, Any]) -> dict[str, Any]:
    """How ``generate`` learns where to stop: the end-of-turn token, or its text."""
    stop_id = tokenizer.convert_tokens_to_ids(stop_str)
    ends = given.get("eos_token_id")
    ends = list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    if isinstance(stop_id, int) and stop_id != tokenizer.unk_token_id:
        return {"eos_token_id": [stop_id, *(end for end in ends if end != stop_id)]}
    return {
        "eos_token_id": ends or tokenizer.eos_token_id,
        "stop_strings": [stop_str],
        "tokenizer": tokenizer,
    }


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that begin, end or pad a row and are no part of an answer's text."""
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset(token_id for token_id in ids if token_id is not None)


def decode_tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer's tokens; ``<ref>`` and other special ones are part of it.

    Args:
        tokenizer: the checkpoint's.
        ids: without :func:`control_ids`.
    """
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, spaces_between_special_tokens=False
    )
    return str(text)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether there is one."""
    places = [place for mark in stop if (place := text.find(mark)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def decode_answer(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> str:
    """The text of a complete answer: up to the end of the turn, without white space around it.

    Args:
        tokenizer: the checkpoint's.
        ids: all that was generated, padding included.
        stop: strings that end the answer.
    """
    control = control_ids(tokenizer)
    text = decode_tokens(tokenizer, [token for token in ids if token not in control])
    return cut_at_stop(text, stop)[0].strip()
