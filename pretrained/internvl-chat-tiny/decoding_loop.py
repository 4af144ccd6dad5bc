"""Greedy and sampled continuation by a :class:`StaticDecoder`, as transformers' own loop does it.

transformers prepares everything and hands it to :func:`continue_rows` in the place of its loop
(``generate(custom_generate=...)``).

Shapes: ``B`` rows, ``T`` tokens of the prompt, ``t`` new tokens, ``V`` the vocabulary's size.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .static_decoding import CAPTURE_LOCK, StaticDecoder


def continue_rows(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    *,
    decoder: StaticDecoder,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Tensor:
    """Continue every row until all have ended.

    Args:
        model: the causal language model.
        input_ids: (B, T), or (B, 0) where the prompt came as embeddings.
        logits_processor: transformers' list.
        stopping_criteria: transformers' list; asked once a token.
        generation_config: complete.
        decoder: takes over after the prompt.
        streamer: is told the tokens.
        **model_kwargs: the prompt, its mask and positions.

    Returns:
        (B, T + t); a row that ends early is filled with the padding token.
    """
    outputs = _read_prompt(model, input_ids, model_kwargs, decoder)
    logits = outputs.logits[:, -1]
    mask = model_kwargs.get("attention_mask")
    layers, pads = _taken(outputs.past_key_values), _pads(mask, len(logits))
    del outputs, model_kwargs
    choose = _TokenChoice(logits_processor, stopping_criteria, generation_config, len(logits))
    try:
        return _continue(model, input_ids, logits, layers, pads, choose, decoder, streamer)
    except torch.OutOfMemoryError:
        decoder.release()
        raise


def _continue(
    model: Any,
    input_ids: Tensor,
    logits: Tensor,
    layers: Iterator[tuple[Tensor, Tensor]],
    pads: list[int],
    choose: _TokenChoice,
    decoder: StaticDecoder,
    streamer: Any,
) -> Tensor:
    """From the prompt's logits on."""
    has_begun = False
    while True:
        input_ids, tokens, ended = choose(input_ids, logits)
        # A step is started before it is known whether it is wanted: the GPU works while the
        # CPU looks at the tokens. Not one that has to move the rows first.
        ahead = has_begun and not decoder.is_full and choose.may_go_on(input_ids)
        if ahead:
            logits = decoder.step(model, tokens)
        if streamer is not None:
            streamer.put(ended.tokens())
        if ended.all():
            break
        if not has_begun:
            decoder.begin(model, layers, pads)
            has_begun = True
        if not ahead:
            logits = decoder.step(model, tokens)
    if streamer is not None:
        streamer.end()
    return input_ids


def _read_prompt(
    model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], decoder: StaticDecoder
) -> Any:
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    try:
        return model(**inputs, return_dict=True)
    except torch.OutOfMemoryError:
        if not decoder.num_bytes:
            raise
    decoder.release()
    _empty(model_kwargs.get("past_key_values"))
    with CAPTURE_LOCK:  # memory cannot be given back while a step is recorded
        torch.cuda.empty_cache()
    return model(**inputs, return_dict=True)


def _empty(cache: Any) -> None:
    """Forget what the layers before the one that failed have put there."""
    for layer in [] if cache is None else cache.layers:
        layer.reset()  # which leaves zeros to attend to in some versions of transformers
        layer.keys = layer.values = None
        layer.is_initialized = False


def _taken(cache: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values, layer by layer, each let go when the next is asked for."""
    for layer in cache.layers:
        yield layer.keys, layer.values
        layer.keys = layer.values = None


def _pads(mask: Tensor | None, rows: int) -> list[int]:
    if mask is None:
        return [0] * rows
    pads: list[int] = (mask.shape[1] - mask.bool().sum(1)).tolist()
    return pads


class _Ended:
    """Which rows have ended and the tokens chosen, on their way to the CPU."""

    def __init__(self, unfinished: Tensor, tokens: Tensor) -> None:
        told = torch.stack([unfinished, tokens])
        self._event: Any = None
        self._told = told
        if told.is_cuda:
            self._told = torch.empty(told.shape, dtype=told.dtype, pin_memory=True)
            self._told.copy_(told, non_blocking=True)
            self._event = _event_of(told.device)

    def _wait(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._told

    def all(self) -> bool:
        """Whether no row goes on."""
        return not self._wait()[0].any()

    def tokens(self) -> Tensor:
        """(B,) on the CPU."""
        return self._wait()[1].clone()


def _event_of(device: torch.device) -> torch.cuda.Event:
    """Now, on the stream of this device, which need not be the process's current one."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


class _TokenChoice:
    """Logits -> tokens, by the rules of transformers' ``generate``."""

    def __init__(self, processor: Any, criteria: Any, config: Any, rows: int) -> None:
        self._processor = processor
        self._criteria = criteria
        self._do_sample = bool(config.do_sample)
        self._pads = any(hasattr(one, "eos_token_id") for one in criteria)
        self._pad = config._pad_token_tensor
        self._unfinished: Tensor | None = None

    def __call__(self, input_ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, _Ended]:
        """The longer ids (B, T + 1), the tokens (B,), and who has ended."""
        if self._unfinished is None:
            self._unfinished = torch.ones(len(logits), dtype=torch.long, device=input_ids.device)
        scores = logits.to(copy=True, dtype=torch.float32, device=input_ids.device)
        scores = self._processor(input_ids, scores)
        if self._do_sample:
            with CAPTURE_LOCK:
                tokens = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(-1)
        if self._pads:
            pad = self._pad.to(tokens.device)
            tokens = tokens * self._unfinished + pad * (1 - self._unfinished)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        self._unfinished = self._unfinished & ~self._criteria(input_ids, None)
        return input_ids, tokens, _Ended(self._unfinished, tokens)

    def may_go_on(self, input_ids: Tensor) -> bool:
        """Whether a step may be started before it is known who has ended."""
        most = self._criteria.max_length
        return input_ids.is_cuda and (most is None or input_ids.shape[1] < most)
