"""Keys and values at fixed places in memory, and attention of one new token a row over them.

Shapes: ``B`` rows, ``L`` places of a row, ``H`` query heads, ``G`` key and value heads, ``d`` their
width. A row's tokens stand at the places 0, 1, ... whatever was padded in its prompt, so a place
is a position, and a row's length says all about which places are read.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

MASKED = "internvl_chat_static_masked"
"""Name of :func:`masked_attention` for transformers: all places are read, by any kernel."""

USED = "internvl_chat_static_used"
"""Name of :func:`used_attention` for transformers: only places in use are read."""


class KeyValueStore:
    """Memory for the keys and values of all layers, cut into (B, L, G, d) as it is needed.

    One cut is in use at a time; all begin at the same addresses, so that steps that were recorded
    for other cuts stay valid until the store grows.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []  # keys and values of each layer in turn, flat

    @property
    def num_bytes(self) -> int:
        """Of the memory held."""
        return sum(part.numel() * part.element_size() for part in self._parts)

    @property
    def num_elements(self) -> int:
        """Of the memory held."""
        return sum(part.numel() for part in self._parts)

    def cut(self, number: int, rows: int, length: int, heads: tuple[int, int]) -> Tensor:
        """A view: (rows, length, G, d).

        Args:
            number: twice the layer's, plus one for values.
            heads: (G, d).
        """
        size = rows * length * heads[0] * heads[1]
        return self._parts[number][:size].view(rows, length, *heads)

    def ensure(self, number: int, size: int, like: Tensor | None) -> bool:
        """Make room for ``size`` elements; what was there may be lost.

        Args:
            like: of the type and device wanted; None for what it was before.

        Returns:
            Whether the address is another one now.
        """
        if number == len(self._parts):
            assert like is not None, "a part is made from its first keys or values"
            self._parts.append(like.new_empty(0))
        part = self._parts[number]
        if part.numel() >= size:
            return False
        self._parts[number] = part.new_empty(0)  # before the larger one is taken
        self._parts[number] = torch.zeros(size, dtype=part.dtype, device=part.device)
        return True

    def release(self) -> None:
        """Give all memory back."""
        self._parts = []


class StepCache:
    """What a language model's layers take for their cache in a step of one token a row.

    Args:
        pairs: keys and values of each layer, (B, L, G, d).
        slots: (B,) where each row's new token goes, counted over B * L.
    """

    is_compileable = False

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], slots: Tensor) -> None:
        self._pairs = pairs
        self._slots = slots

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (B, G, 1, d); all of them, (B, G, L, d)."""
        keys, values = self._pairs[layer_idx]
        keys.flatten(0, 1).index_copy_(0, self._slots, key_states.squeeze(2))
        values.flatten(0, 1).index_copy_(0, self._slots, value_states.squeeze(2))
        return keys.transpose(1, 2), values.transpose(1, 2)


def masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one token a row over all places, those not in use masked.

    Heads that share a key are queries of one attention here, so no key is copied for them.

    Args:
        query: (B, H, 1, d); key and value: (B, G, L, d).
        attention_mask: (B, 1, 1, L), True where a row has a token.

    Returns:
        (B, 1, H, d), as transformers' attention functions do.
    """
    if attention_mask is None or query.shape[2] != 1:
        return _others_attention(module, query, key, value, attention_mask, scaling, kwargs)
    _refuse_unknown(kwargs)
    rows, heads, _, width = query.shape
    shared = query.view(rows, key.shape[1], heads // key.shape[1], width)
    attended = F.scaled_dot_product_attention(
        shared, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.reshape(rows, 1, heads, value.shape[-1]), None


def used_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The same by PyTorch's flash kernel, which reads no place that is not in use.

    Args:
        attention_mask: what :func:`used_places` gives.

    Others, and what is returned, as for :func:`masked_attention`.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return masked_attention(module, query, key, value, attention_mask, scaling, **kwargs)
    from torch.nn.attention.varlen import varlen_attn

    _refuse_unknown(kwargs)
    starts, key_starts, used = attention_mask[0, 0]
    attended = varlen_attn(
        query.squeeze(2),
        key.transpose(1, 2).flatten(0, 1),
        value.transpose(1, 2).flatten(0, 1),
        starts,
        key_starts,
        1,
        key.shape[2],
        scale=scaling,
        enable_gqa=True,
        seqused_k=used[:-1],
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(1), None


def _others_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, None]:
    """Of another thread that asks the same model in its usual way during a step of ours."""
    from transformers import AttentionInterface

    attend = AttentionInterface()["sdpa"]
    result: tuple[Tensor, None] = attend(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return result


def masked_places(used: Tensor, places: int) -> Tensor:
    """The mask of :func:`masked_attention`: (B, 1, 1, places), from (B,) tokens of each row."""
    return (torch.arange(places, device=used.device) < used[:, None])[:, None, None]


def used_places(used: Tensor, places: int) -> Tensor:
    """The "mask" of :func:`used_attention`, of four dimensions so that it is handed on as it is.

    Args:
        used: (B,) int32, tokens of each row.
        places: L.

    Returns:
        (1, 1, 3, B + 1) int32: where queries begin, where keys begin, how many are used.
    """
    starts = torch.arange(len(used) + 1, dtype=torch.int32, device=used.device)
    return torch.stack([starts, starts * places, F.pad(used, (0, 1))])[None, None]


def _refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Raises:
    ValueError: the model asks for more than plain attention.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention with {name} has no static cache here")


@functools.lru_cache
def has_used_attention(dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """Whether :func:`used_attention` is to be had here, and says what the other one says.

    Args:
        width: d.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or width > 256:
        return False
    if torch.cuda.get_device_capability(device)[0] < 8:
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    if not {"seqused_k", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters):
        return False
    return _agree(dtype, device, width)


def _agree(dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """Tried on a few numbers: the kernel is another one in each version of PyTorch."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = (2, 4, 1, width), (2, 2, 48, width), (2, 2, 48, width)
    query, key, value = (
        torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes
    )
    used = torch.tensor([33, 2], dtype=torch.int32, device=device)
    module = nn.Module()
    try:
        found, _ = used_attention(module, query, key, value, used_places(used, 48))
    except (RuntimeError, ValueError, TypeError) as err:
        logger.info("PyTorch's varlen_attn is not used: %s", err)
        return False
    wanted, _ = masked_attention(module, query, key, value, masked_places(used, 48))
    return torch.allclose(found.float(), wanted.float(), atol=0.05)


@contextmanager
def attention_of_steps(model: nn.Module, name: str) -> Iterator[None]:
    """Let the layers of a language model attend by MASKED or USED meanwhile."""
    from transformers import AttentionInterface, AttentionMaskInterface

    sdpa_mask = AttentionMaskInterface()["sdpa"]
    for kernel, attend in ((MASKED, masked_attention), (USED, used_attention)):
        AttentionInterface.register(kernel, attend)
        AttentionMaskInterface.register(kernel, sdpa_mask)
    found: dict[int, Any] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None):
            found[id(config)] = config
    before = [(config, config._attn_implementation) for config in found.values()]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, kernel in before:
            config._attn_implementation = kernel
