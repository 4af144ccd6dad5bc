"""Which answers a :class:`StaticDecoder` gives, and how transformers is asked for them.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .configuration_intern_vit import TRANSFORMERS
from .static_cache import MASKED, USED
from .static_decoding import MAX_ROWS, round_places, round_rows

_MODEL_TYPES = ("gemma", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Language models whose layers do nothing in a step but what a test compares."""

_KERNELS = (None, "sdpa", "flash_attention_2", "flash_attention_3", MASKED, USED)
"""Of prompts. Who asks for another wants it in every step. The last two are seen where another
thread is in a step of ours."""

_FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that are no matter of how long a text is."""

_OWN_LOOPS = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "guidance_scale": 1,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "custom_generate": None,
    "synced_gpus": False,
    "past_key_values": None,
    "cache_implementation": None,
    "prefill_chunk_size": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict_in_generate": False,
    "token_healing": False,
    "disable_compile": False,
    "negative_prompt_ids": None,
}
"""Keywords of ``generate`` that want another loop or cache, unless they are this or None."""

_NO_SETTINGS = (
    "streamer",
    "tokenizer",
    "stopping_criteria",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "trust_remote_code",
    "use_model_defaults",
)
"""Keywords that go to ``generate`` beside those of its configuration; others go to the model,
which is not told them in a step of ours."""


_RECORDING = 1 << 28
"""Bytes that the recording of a step may take: work space of cuBLAS, and what a step computes."""


def why_not(model: nn.Module, *, on_cpu: bool, loaded: object = None) -> str | None:
    """Why a language model cannot be decoded so, whatever is asked; None if it can be.

    Args:
        model: the causal language model, without its wrapper.
        on_cpu: whether it may be done where nothing is gained.
        loaded: the model that it is a part of: transformers marks what it has loaded as
            quantized, not the parts.
    """
    config = model.config
    devices = {parameter.device for parameter in model.parameters()}
    kinds = {device.type for device in devices}
    if TRANSFORMERS < (5, 8):  # the package's own least; untried before
        return "transformers is older than 5.8"
    if kinds == {"cpu"} and not on_cpu:
        return "it is on the CPU"
    if len(devices) != 1 or kinds - {"cuda", "cpu"}:
        return "it is spread over several devices"
    if torch.is_autocast_enabled(*kinds):  # a recorded step would read casts that are gone
        return "autocast is on"
    if _is_quantized(model) or _is_quantized(loaded):
        return "its weights are quantized"  # int8's products wait for the GPU amid a step
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "ZeRO-3 holds its weights"
    if model.training:
        return "it is in training mode"
    return _why_not_architecture(config)


def _is_quantized(model: object) -> bool:
    """As transformers marks what it has loaded."""
    marks = getattr(model, "is_quantized", False), getattr(model, "quantization_method", None)
    return any(marks)


def _why_not_architecture(config: Any) -> str | None:
    kind = getattr(config, "model_type", None)
    if kind not in _MODEL_TYPES:
        return f"language models of type {kind} are not among {', '.join(_MODEL_TYPES)}"
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _FIXED_ROPE:
        return f"its rotary embeddings ({rope_type}) depend on the length of the text"
    if config._attn_implementation not in _KERNELS:
        return f"attn_implementation is {config._attn_implementation}"
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1 or kinds - {"full_attention", "sliding_attention"}:
        return f"its layers are of {', '.join(sorted(kinds))}"
    return None


def window_of(config: Any) -> int | None:
    """Tokens that each layer looks back at; None for all."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds == {"full_attention"}:
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def static_keywords(
    model: Any, embeds: Tensor, keywords: dict[str, Any], config: Any
) -> dict[str, Any] | None:
    """Keywords of ``generate`` for the same answer by :func:`decoding_loop.continue_rows`.

    Args:
        model: the causal language model, which :func:`why_not` has nothing against.
        embeds: (B, T, D) of the prompts.
        keywords: of ``generate``, without the prompts.
        config: a ``GenerationConfig`` given beside them, or None.

    Returns:
        In the place of ``keywords``; None where the answer is asked for in another way.
    """

    def asked(name: str) -> Any:
        if name in keywords:
            return keywords[name]
        given = getattr(config, name, None)
        return getattr(model.generation_config, name, None) if given is None else given

    known = (*_NO_SETTINGS, *_OWN_LOOPS, *vars(model.generation_config))
    if any(value is not None and name not in known for name, value in keywords.items()):
        return None
    for name, harmless in _OWN_LOOPS.items():
        if (value := asked(name)) is not None and value != harmless:
            return None
    if asked("use_cache") is False or model.generation_config.stop_strings is not None:
        return None
    rows = len(embeds) * (asked("num_return_sequences") or 1)
    most = embeds.shape[1] + (asked("max_new_tokens") or model.config.max_position_embeddings)
    window = window_of(model.config)
    if rows > MAX_ROWS or (window is not None and most > window):
        return None
    return _with_stop_strings(keywords, asked("stop_strings"))


def _with_stop_strings(keywords: dict[str, Any], strings: Any) -> dict[str, Any]:
    """transformers forgets the tokenizer where the loop is another's: the criterion is made here.

    Raises:
        ValueError: there is no tokenizer.
    """
    if strings is None:
        return {name: value for name, value in keywords.items() if name != "tokenizer"}
    from transformers import StoppingCriteriaList, StopStringCriteria

    if (tokenizer := keywords.get("tokenizer")) is None:
        raise ValueError("stop_strings need the tokenizer: generate(..., tokenizer=tokenizer)")
    others = keywords.get("stopping_criteria") or []
    criteria = StoppingCriteriaList([*others, StopStringCriteria(tokenizer, strings)])
    given = {name: value for name, value in keywords.items() if name != "tokenizer"}
    return {**given, "stop_strings": None, "stopping_criteria": criteria}


def is_padded_left(mask: Tensor) -> bool:
    """Whether each row of a mask (B, T) is zeros, if any, and then ones up to its end."""
    if mask.dim() != 2:
        return False
    ones = mask.bool()
    return bool(ones[:, -1].all() and (ones[:, 1:] >= ones[:, :-1]).all())


def has_memory_for(model: Any, rows: int, tokens: int, held: int) -> bool:
    """Whether the GPU has room for the keys and values, and as much again for the prompt's.

    Args:
        tokens: of the longest prompt.
        held: bytes that the decoder has already.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    wanted = round_rows(rows) * round_places(tokens + 1) * bytes_of_token(model)
    return 2 * wanted - held + _RECORDING < free


def bytes_of_token(model: Any) -> int:
    """Of keys and values in all layers."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(model.parameters()).element_size()
    return int(2 * config.num_hidden_layers * heads * width * size)
