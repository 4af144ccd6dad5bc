"""Questions -> answers with a loaded model, in batches whose answers are those of ``model.chat``.

A row of a batch is computed with other matrix shapes and padding than the same question alone, so
its logits differ by rounding: some 1e-5 in float32, tenths in bfloat16. Where the two likeliest
tokens of a step lie closer together than that, the batch could decide otherwise. Such rows are
noticed and their questions asked again alone: greedy answers depend on no batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from internvl_chat.data.pixels import normalize_pixels
from internvl_chat.errors import UserError
from internvl_chat.evaluation.pixels import TileRule, load_tiles
from internvl_chat.evaluation.task import Question, Tiling
from internvl_chat.model.chat import (
    decode_answer,
    expand_image_tags,
    pad_id,
    prompt_ids,
    stop_settings,
)
from internvl_chat.model.constants import (
    IMAGE_TAG,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
)

logger = logging.getLogger(__name__)

SAFE_MARGIN = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 1.0}
"""Least difference of the two highest logits by which a batch's choice counts as everybody's."""
_IMAGE_TOKENS = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A question with its files read."""

    question: Question
    tiles: Tensor | None
    """(n, 3, S, S) uint8"""
    num_patches: list[int]
    """Tiles of each image tag."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """An answer."""

    text: str
    num_tokens: int
    """The end of the turn included."""


class Answerer(Protocol):
    """What the runner asks: a loaded model, or a script in tests."""

    def prepare(self, question: Question, tiling: Tiling) -> Prepared:
        """Read a question's files; called in threads.

        Raises:
            DatasetError: they cannot be used.
        """

    def answer(self, batch: Sequence[Prepared], settings: Mapping[str, Any]) -> list[Generated]:
        """Answer questions at once.

        Args:
            batch: of any lengths.
            settings: keywords of ``generate``.
        """

    def rows_at_once(self, length: int) -> int:
        """How many questions of so many tokens, answer included, go into a batch by default."""

    def describe(self) -> dict[str, Any]:
        """For people: template, sizes, dtype."""


@dataclass(frozen=True)
class ModelAnswerer:
    """A model of ``load_model``."""

    model: Any
    tokenizer: Any
    tile_rule: TileRule
    seed: int
    """Of sampled answers."""

    def prepare(self, question: Question, tiling: Tiling) -> Prepared:
        """See :class:`Answerer`."""
        tiles, counts = load_tiles(question, self.tile_rule, tiling)
        return Prepared(question=question, tiles=tiles, num_patches=counts)

    def rows_at_once(self, length: int) -> int:
        """See :class:`Answerer`; one in half precision, see :meth:`describe`."""
        if self.model.dtype != torch.float32:
            return 1
        budget, most = (16_384, 16) if self.model.device.type == "cpu" else (65_536, 64)
        return max(1, min(most, budget // max(length, 1)))

    def describe(self) -> dict[str, Any]:
        """See :class:`Answerer`."""
        config = self.model.config
        return {
            "template": config.template,
            "image_size": self.tile_rule.side,
            "use_thumbnail": self.tile_rule.has_thumbnail,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            "stored_parameters": sum(one.numel() for one in self.model.parameters()),
        }

    @torch.inference_mode()
    def answer(self, batch: Sequence[Prepared], settings: Mapping[str, Any]) -> list[Generated]:
        """See :class:`Answerer`; a batch that does not fit into memory is halved."""
        if settings.get("do_sample"):
            return [self._sampled(one, settings) for one in batch]
        try:
            found, margins = self._generate(batch, settings)
        except torch.OutOfMemoryError as err:
            if len(batch) == 1:
                raise UserError(
                    "does not fit into the GPU's memory",
                    where=f"question {batch[0].question.id}",
                    fix="Give --auto, --load-in-8bit or a smaller --max-num.",
                ) from err
            logger.warning("%d questions at once do not fit, halving", len(batch))
            torch.cuda.empty_cache()
            half = len(batch) // 2
            return self.answer(batch[:half], settings) + self.answer(batch[half:], settings)
        if len(batch) > 1 and settings.get("num_beams", 1) == 1:
            for row, margin in enumerate(margins):
                if margin < SAFE_MARGIN.get(self.model.dtype, 1.0):
                    found[row] = self._generate(batch[row : row + 1], settings)[0][0]
        return found

    def _sampled(self, one: Prepared, settings: Mapping[str, Any]) -> Generated:
        """Alone and from a seed of its own, so that no batch, rank or interruption matters."""
        digest = hashlib.sha256(f"{self.seed}/{one.question.id}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        return self._generate([one], settings)[0][0]

    def _generate(
        self, batch: Sequence[Prepared], settings: Mapping[str, Any]
    ) -> tuple[list[Generated], list[float]]:
        """Answers, and for each the least margin of a greedy choice."""
        model, tokenizer = self.model, self.tokenizer
        model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        rows = [self._ids(one) for one in batch]
        longest, filler = max(map(len, rows)), pad_id(tokenizer)
        ids = torch.tensor([[filler] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        keywords = {"pad_token_id": filler, **settings}
        stop = model.conv_template.stop_str
        keywords |= stop_settings(tokenizer, stop, keywords)
        margins = _Margins()
        if keywords.get("num_beams", 1) == 1:
            keywords["logits_processor"] = LogitsProcessorList([margins])
        sequences = model.generate(
            self._pixels(batch), ids.to(model.device), mask.to(model.device), **keywords
        )
        answers, least = [], []
        steps = torch.stack(margins.steps, 1).cpu() if margins.steps else None
        for row, generated in enumerate(sequences.tolist()):
            count = _count(generated, keywords["eos_token_id"], filler)
            text = decode_answer(tokenizer, generated, (stop,))
            answers.append(Generated(text=text, num_tokens=count))
            alone = steps is None or not count
            least.append(float("inf") if alone else steps[row, :count].min().item())  # type: ignore[index]
        return answers, least

    def _ids(self, one: Prepared) -> list[int]:
        question = one.question
        turns: list[tuple[str, str | None]] = [*question.earlier, (question.prompt, None)]
        if one.num_patches and not question.num_image_tags:
            turns[0] = (f"{IMAGE_TAG}\n{turns[0][0]}", turns[0][1])
        system = question.system_message
        if system is None:
            system = self.model.system_message
        template = self.model.conv_template
        prompt = template.render(turns, system).text
        tokens = self.model.num_image_token
        prompt = expand_image_tags(prompt, one.num_patches, tokens, _IMAGE_TOKENS)
        return prompt_ids(self.tokenizer, prompt, template.bos_in_training)

    def _pixels(self, batch: Sequence[Prepared]) -> Tensor | None:
        """(N, 3, S, S), normalised, in the order of the questions."""
        tiles = [one.tiles for one in batch if one.tiles is not None]
        if not tiles:
            return None
        return normalize_pixels(
            torch.cat(tiles).to(self.model.device),
            normalize_type=self.tile_rule.normalize_type,
            dtype=self.model.dtype,
        )


class _Margins(LogitsProcessor):
    """Notes by how much the likeliest token leads; changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        """(B,) a step."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        first, second = scores.topk(2, dim=-1).values.unbind(-1)
        self.steps.append(first - second)
        return scores


def _count(row: Sequence[int], ends: int | Sequence[int] | None, filler: int) -> int:
    """Tokens up to the end of the turn, which counts; without one, up to the padding."""
    stops = {ends} if isinstance(ends, int) else set(ends or ())
    for number, token in enumerate(row, start=1):
        if token in stops:
            return number
    count = len(row)
    while count and row[count - 1] == filler:
        count -= 1
    return count
