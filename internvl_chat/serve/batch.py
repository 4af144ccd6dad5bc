"""The rows that are being answered: their keys and values, padded on the left.

Shapes: ``B`` rows, ``T`` positions of the longest, ``H`` heads, ``d`` their width, ``V`` the
vocabulary's size.

Rows join and leave between two steps. All layers keep all positions, also those of models with a
sliding window, whose mask counts back from the right and so does not mind padding on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from internvl_chat.model.decoding_choice import has_memory_for, window_of
from internvl_chat.model.static_decoding import MAX_ROWS, StaticDecoder


@dataclass(frozen=True)
class EncodedPrompt:
    """What the model reads before it answers."""

    ids: list[int]
    """K placeholders per tile and all."""
    tiles: Tensor | None
    """(n, 3, S, S) float32, reading order; None without images."""


@dataclass(frozen=True)
class Batch:
    """Keys, values and mask of B rows; the methods return a new one."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of each layer, (B, H, T, d); unused where the mask is 0."""
    mask: Tensor
    """(B, T) int64, 1 on real positions: zeros, then ones."""

    def join(self, other: Batch) -> Batch:
        """These rows, then those of ``other``."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        mine, theirs = self._widen(width), other._widen(width)
        layers = tuple(
            (torch.cat([keys, more_keys]), torch.cat([values, more_values]))
            for (keys, values), (more_keys, more_values) in zip(
                mine.layers, theirs.layers, strict=True
            )
        )
        return Batch(layers, torch.cat([mine.mask, theirs.mask]))

    def keep(self, rows: Sequence[int]) -> Batch:
        """Only these rows, without the positions that none of them uses."""
        mask = self.mask[list(rows)]
        unused = int(mask.shape[1] - mask.sum(1).max())
        layers = tuple(
            (keys[list(rows), :, unused:], values[list(rows), :, unused:])
            for keys, values in self.layers
        )
        return Batch(layers, mask[:, unused:])

    def pads(self) -> list[int]:
        """Unused positions of each row, which come first."""
        pads: list[int] = (self.mask.shape[1] - self.mask.sum(1)).tolist()
        return pads

    def _widen(self, width: int) -> Batch:
        more = width - self.mask.shape[1]
        if not more:
            return self
        layers = tuple(
            (F.pad(keys, (0, 0, more, 0)), F.pad(values, (0, 0, more, 0)))
            for keys, values in self.layers
        )
        return Batch(layers, F.pad(self.mask, (more, 0)))


@dataclass(frozen=True)
class StaticRows:
    """B rows in the memory of a :class:`StaticDecoder`, as :class:`Batch` has them in its own.

    There is one of them at a time: the methods change it.
    """

    decoder: StaticDecoder

    def join(self, other: Batch) -> StaticRows:
        """These rows, then those of ``other``."""
        self.decoder.join(other.layers, other.pads())
        return self

    def keep(self, rows: Sequence[int]) -> StaticRows:
        """Only these rows, at least one."""
        self.decoder.keep(rows)
        return self


Rows = Batch | StaticRows


def fast_rows(model: Any, batch: Batch, max_rows: int) -> Rows:
    """The same rows where their steps are recorded, if the model is decoded so.

    Args:
        max_rows: that there may be, these included.
    """
    decoder: StaticDecoder | None = model.static_decoder
    if decoder is None or max_rows > MAX_ROWS:
        return batch
    language_model = model._bare_language_model()
    window = window_of(language_model.config)
    if window is not None and window < language_model.config.max_position_embeddings:
        return batch
    rows, length = batch.mask.shape
    if not has_memory_for(language_model, rows, length, decoder.num_bytes):
        decoder.release()
        return batch
    try:
        decoder.begin(language_model, batch.layers, batch.pads())
    except torch.OutOfMemoryError:
        decoder.release()
        return batch
    return StaticRows(decoder)


@torch.inference_mode()
def prefill(model: Any, prompts: Sequence[EncodedPrompt], pad_id: int) -> tuple[Batch, Tensor]:
    """Read prompts in one pass.

    Args:
        model: an InternVLChatModel with ``img_context_token_id`` set.
        prompts: at least one.
        pad_id: any token.

    Returns:
        The rows, and their next tokens' logits (B, V).
    """
    width = max(len(prompt.ids) for prompt in prompts)
    pads = [width - len(prompt.ids) for prompt in prompts]
    ids = [[pad_id] * pad + prompt.ids for pad, prompt in zip(pads, prompts, strict=True)]
    ones = [[0] * pad + [1] * (width - pad) for pad in pads]
    mask = torch.tensor(ones, device=model.device)
    tiles = [prompt.tiles for prompt in prompts if prompt.tiles is not None]
    cache = DynamicCache()
    output = model(
        pixel_values=torch.cat(tiles).to(model.device, model.dtype) if tiles else None,
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return _batch(cache, mask), output.logits[:, -1]


@torch.inference_mode()
def decode(model: Any, batch: Rows, tokens: Sequence[int]) -> tuple[Rows, Tensor]:
    """Read one token more of every row.

    Args:
        model: as for :func:`prefill`.
        batch: B rows.
        tokens: of each row.

    Returns:
        The longer rows, and their next tokens' logits (B, V), valid until the next call.
    """
    if isinstance(batch, StaticRows):
        read = torch.tensor(tokens)
        return batch, batch.decoder.step(model._bare_language_model(), read)
    mask = F.pad(batch.mask, (0, 1), value=1)
    cache = DynamicCache(batch.layers)
    output = model.language_model(
        input_ids=torch.tensor(tokens, device=mask.device).unsqueeze(1),
        attention_mask=mask,
        position_ids=mask.sum(1, keepdim=True) - 1,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )
    return _batch(cache, mask), output.logits[:, -1]


def _batch(cache: DynamicCache, mask: Tensor) -> Batch:
    return Batch(tuple((layer.keys, layer.values) for layer in cache.layers), mask)
