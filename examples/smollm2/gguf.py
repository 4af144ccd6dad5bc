"""A GGUF file of a Llama-type chat model -> a safetensors checkpoint with a fast tokenizer.

transformers reads GGUF (weights are de-quantised, names mapped back); this module settles what that
reading leaves open, so that the result is a checkpoint like any other: no trace of a quantisation,
the pre-tokenizer that the file names, the model's own context length, and a directory that is
complete or absent.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.files import replace_directory

logger = logging.getLogger(__name__)

DType = Literal["float32", "bfloat16", "float16"]

_MAGIC = b"GGUF"


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _byte_level,
    "smollm": _digits_then_byte_level,
}
"""``tokenizer.ggml.pre`` -> how text is cut before byte-pair merging.

The cuts are those of llama.cpp's table of the same names (``llama-vocab.cpp``); transformers cuts
every byte-level vocabulary as GPT-2 does, which joins white space to digits differently.
"""


@dataclass(frozen=True, kw_only=True)
class GgufFacts:
    """What a GGUF file says of itself, as far as the conversion needs it."""

    architecture: str
    context_length: int
    """Positions the model was trained for, in tokens."""
    tokenizer_model: str
    """``gpt2`` for byte-level BPE, ``llama`` for sentencepiece."""
    pre_tokenizer: str | None
    control_tokens: tuple[str, ...]
    """Tokens that must come out whole, never split."""
    chat_template: str | None


def read_facts(gguf_path: Path) -> GgufFacts:
    """Read the header of a GGUF file; no weight is touched.

    Raises:
        ConfigError: the ``gguf`` package is not installed.
        CheckpointError: no such file, or not a GGUF file.
    """
    _check_readable(gguf_path)
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(gguf_path).fields

    def value(key: str, default: Any = None) -> Any:
        return fields[key].contents() if key in fields else default

    architecture = value("general.architecture", "")
    types = value("tokenizer.ggml.token_type", [])
    tokens = value("tokenizer.ggml.tokens", [])
    if not tokens:
        raise CheckpointError("no vocabulary inside", where=str(gguf_path), fix="Take a full model")
    return GgufFacts(
        architecture=architecture,
        context_length=int(value(f"{architecture}.context_length", 0)),
        tokenizer_model=value("tokenizer.ggml.model", ""),
        pre_tokenizer=value("tokenizer.ggml.pre"),
        control_tokens=tuple(
            token
            for token, kind in zip(tokens, types, strict=False)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
        ),
        chat_template=value("tokenizer.chat_template"),
    )


def convert_gguf(
    gguf_path: str | Path, output_dir: str | Path, *, dtype: DType = "bfloat16"
) -> Path:
    """Write the model of a GGUF file as a transformers checkpoint.

    Args:
        gguf_path: a single-file GGUF of a Llama-type causal language model, quantised or not.
        output_dir: gets ``config.json``, ``model.safetensors``, ``generation_config.json`` and
            the fast tokenizer with its chat template; must not exist, or be empty.
        dtype: of the stored weights.

    Returns:
        ``output_dir``.

    Raises:
        ConfigError: the ``gguf`` package is missing, or ``output_dir`` holds something.
        CheckpointError: the file is no GGUF, of another architecture, or its tokenizer does not
            keep the control tokens whole.
    """
    source, target = Path(gguf_path), Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            "exists and is not empty", where=str(target), fix="Remove it or name another directory"
        )
    facts = read_facts(source)
    if facts.architecture != "llama":
        raise CheckpointError(
            f"architecture {facts.architecture!r}, want 'llama'",
            where=str(source),
            fix="Convert other architectures with transformers' from_pretrained(gguf_file=...)",
        )

    tokenizer = _load_tokenizer(source, facts)
    model = _load_model(source, tokenizer, getattr(torch, dtype))

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    replace_directory(partial, target)
    logger.info("%s: %d parameters in %s", target, model.num_parameters(), dtype)
    return target


def _check_readable(gguf_path: Path) -> None:
    if find_spec("gguf") is None:
        raise ConfigError("reading GGUF needs the package gguf", fix="pip install gguf")
    if not gguf_path.is_file():
        raise CheckpointError("no such file", where=str(gguf_path))
    with gguf_path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise CheckpointError(f"not a GGUF file: it begins with {magic!r}", where=str(gguf_path))


def _load_tokenizer(gguf_path: Path, facts: GgufFacts) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name
    )
    if facts.tokenizer_model == "gpt2":
        if (make := PRE_TOKENIZERS.get(facts.pre_tokenizer or "gpt-2")) is not None:
            tokenizer.backend_tokenizer.pre_tokenizer = make()
        else:
            logger.warning(
                "%s: pre-tokenizer %r is not known here; text is cut as GPT-2 does",
                gguf_path,
                facts.pre_tokenizer,
            )
    if facts.context_length:
        tokenizer.model_max_length = facts.context_length
    if facts.chat_template:
        tokenizer.chat_template = facts.chat_template
    split = [token for token in facts.control_tokens if tokenizer.tokenize(token) != [token]]
    if split:
        raise CheckpointError(
            f"the tokenizer splits control tokens: {', '.join(split[:5])}", where=str(gguf_path)
        )
    return tokenizer


def _load_model(
    gguf_path: Path, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> PreTrainedModel:
    """The weights in a model built from a clean configuration.

    The model that transformers returns remembers a quantiser and refuses to be saved.
    """
    read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
    )
    settings = read.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path", "dtype"):
        settings.pop(key, None)
    # The file stores fp32, Python reads fp64: 9.999999747378752e-06 is the nearest fp32 to 1e-5.
    settings["rms_norm_eps"] = float(str(np.float32(settings["rms_norm_eps"])))
    config = type(read.config)(**settings)
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"{len(tokenizer)} tokens, {config.vocab_size} embedding rows", where=str(gguf_path)
        )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
