"""A collated micro batch -> what the model takes of it. Pure but for the device of the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from internvl_chat.config import NormalizeType
from internvl_chat.data.pixels import normalize_pixels
from internvl_chat.train.attention import PACKED_BY_BORDERS, SDPA_VARLEN

FORWARD_KEYS = ("input_ids", "labels", "attention_mask", "position_ids", "image_flags")
_PACKED_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def forward_inputs(
    batch: Mapping[str, Any],
    *,
    attention: str,
    normalize_type: NormalizeType,
    pixel_dtype: torch.dtype,
) -> dict[str, Any]:
    """Arguments of the model's forward pass, pixels normalised on their device.

    Args:
        batch: collated, on the device; a packed one with ``segment_lengths``
            (:func:`segment_lengths`).
        attention: name of the LLM's kernel, which decides what a packed row must bring.
        normalize_type, pixel_dtype: of the pixels.
    """
    taken = {key: batch[key] for key in FORWARD_KEYS if batch.get(key) is not None}
    pixels = batch.get("pixel_values")
    if pixels is not None:
        taken["pixel_values"] = normalize_pixels(
            pixels, normalize_type=normalize_type, dtype=pixel_dtype
        )
    is_packed = batch.get("cu_seq_lens_q") is not None
    if is_packed and attention in PACKED_BY_BORDERS:
        taken |= {name: batch[name] for name in _PACKED_KEYS}
    elif is_packed and attention == SDPA_VARLEN:
        taken["segment_lengths"] = batch["segment_lengths"]
    elif not is_packed and attention != "flash_attention_2":
        # Padding stands at the right, where causal attention never looks, and enters no loss:
        # without a mask tensor the plain causal kernel runs.
        taken.pop("attention_mask", None)
        taken.pop("position_ids", None)
    return taken


def segment_lengths(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths of a packed row's samples as plain numbers; read on the CPU, without a device sync.

    Args:
        batch: collated, on the CPU.

    Returns:
        An entry to add to the batch; none if it is padded.
    """
    segments = batch.get("cu_seq_lens_q")
    return {} if segments is None else {"segment_lengths": tuple(segments.diff().tolist())}


def with_dummy_image(batch: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Give a micro batch without images a blank tile that no token takes.

    Args:
        batch: collated.
        image_size: S.
    """
    if batch.get("pixel_values") is not None:
        return batch
    blank = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
    return {**batch, "pixel_values": blank, "image_flags": torch.zeros(1, dtype=torch.long)}
