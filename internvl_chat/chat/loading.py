"""Load a checkpoint for inference."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from transformers import BitsAndBytesConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from internvl_chat.chat.device_map import split_model
from internvl_chat.checkpoint.agreement import require_tokenizer_fits
from internvl_chat.checkpoint.artifacts import decode_config_of, normalize_type_of
from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.load import require_complete
from internvl_chat.checkpoint.sources import UNFIT_CONFIGURATION, read_chat_config, said
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.adapter import has_model_weights, is_adapter
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)

_TRAINING_FLAG: Final = re.compile(r"--[a-z]+_[a-z_]+")
"""Flags of training have underscores, and no sense for who loads a model."""


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU; fp32 on a CPU, most of which have no bf16 arithmetic."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_model(
    path: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    device_map: str | dict[str, Any] | None = None,
    gpus: int | None = None,
    offload_dir: str | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    attn_implementation: str | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    compile: bool = True,
) -> tuple[InternVLChatModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer, ready to answer.

    Args:
        path: a checkpoint of any kind, or a model on the hub: ORG/NAME or ORG/NAME@REVISION.
        dtype: of the weights; by default bf16 on a GPU and fp32 on a CPU.
        device: where all of the model goes; the first GPU by default, or the CPU.
        device_map: where each part goes, instead of ``device``: "auto" or :func:`split_model`.
        gpus: spread it over so many GPUs as :func:`split_model` does, instead of either.
        offload_dir: where the parts that ``device_map`` puts on "disk" are kept.
        load_in_8bit: int8 linear layers by bitsandbytes, ``lm_head`` and ``mlp1`` excepted.
        load_in_4bit: nf4 linear layers of the language model, as QLoRA trains on them.
        attn_implementation: kernel of both towers; transformers' choice by default.
        quantization_config: other bitsandbytes settings. 4 bits are for the language model
            only: a warning says so if the vision tower would be quantised.
        compile: on a GPU, record the steps of an answer as CUDA graphs and replay them; False
            decodes step by step. See ``model.static_decoding``.

    Raises:
        CheckpointError: no complete checkpoint of this model family at ``path``, or its
            tokenizer is another model's.
        ConfigError: settings that exclude each other.
    """
    _refuse_several(device=device, device_map=device_map, gpus=gpus)
    quantised = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
    _refuse_several(**quantised, quantization_config=quantization_config)
    place = _require_place(path, device=device, gpus=gpus, **quantised)
    _require_complete(path := local_model(path))
    tokenizer, config = _tokenizer_and_config(path)
    _warn_of_four_bits(quantization_config)
    if gpus is not None:
        device_map = _spread(path, config, gpus)
    asked: dict[str, Any] = {
        "dtype": default_dtype(place) if dtype is None else dtype,
        "device_map": {"": place} if device_map is None else device_map,
        "local_files_only": True,
        "offload_folder": offload_dir,
        **quantised,
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
    }
    options = {name: value for name, value in asked.items() if _is_given(value)}
    images = _image_settings(Path(path))
    model = _load_weights(path, options)
    model.config.update(images)
    model.static_decoding = None if compile else False
    return model, tokenizer


def _tokenizer_and_config(path: str) -> tuple[PreTrainedTokenizerBase, Any]:
    """Raises:
    CheckpointError: they are not of one model.
    """
    tokenizer, config = load_tokenizer(path), read_chat_config(path)
    require_tokenizer_fits(tokenizer, config, path)
    return tokenizer, config


def _image_settings(path: Path) -> dict[str, Any]:
    """Plain values: the configuration is written as JSON."""
    return {"normalize_type": normalize_type_of(path), **decode_config_of(path).stored()}


def _load_weights(path: str, options: dict[str, Any]) -> InternVLChatModel:
    """Raises:
    CheckpointError: an adapter that transformers or PEFT cannot put onto its base.
    ConfigError: a package is missing.
    """
    try:
        model: InternVLChatModel = InternVLChatModel.from_pretrained(path, **options)
    except ImportError as err:  # of what quantised weights need
        raise ConfigError(" ".join(str(err).split()), where=path) from err
    except UNFIT_CONFIGURATION as err:
        if not is_adapter(path):  # all else was compared before
            raise
        text = said(err)
        where = None if text.startswith(path) else path
        raise CheckpointError(text, where=where) from err
    return model.eval()


def require_loadable(
    path: str,
    *,
    device: torch.device | str | None = None,
    gpus: int | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> torch.device:
    """Find what would end :func:`load_model`, before a weight is read.

    Args:
        path, device, gpus, load_in_8bit, load_in_4bit: of :func:`load_model`.

    Returns:
        Where a model goes that lies in one place.

    Raises:
        CheckpointError: no complete checkpoint of this model family at ``path``.
        ConfigError: no such device, too few GPUs, or a package is missing.
    """
    place = _require_place(
        path, device=device, gpus=gpus, load_in_8bit=load_in_8bit, load_in_4bit=load_in_4bit
    )
    _require_complete(local_model(path))
    return place


def _require_place(
    path: str,
    *,
    device: torch.device | str | None,
    gpus: int | None,
    load_in_8bit: bool,
    load_in_4bit: bool,
) -> torch.device:
    """Where a model goes that lies in one place; looks at no file of it.

    Raises:
        ConfigError: no model is named, no such device, too few GPUs, or a package is missing.
    """
    if not path:
        raise ConfigError("no model is named", where="model", fix="Give a checkpoint's directory.")
    if (load_in_8bit or load_in_4bit) and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{'int8' if load_in_8bit else 'nf4'} needs bitsandbytes, which is not installed",
            where="load_in_8bit" if load_in_8bit else "load_in_4bit",
            fix="pip install bitsandbytes",
        )
    place = default_device() if device is None else _find_device(device)
    if gpus is not None:
        _require_gpus(gpus)
    return place


def _require_complete(path: str) -> None:
    """Raises:
    CheckpointError: no complete checkpoint of this model family at ``path``.
    """
    try:
        require_complete(path)
    except CheckpointError as err:
        if err.fix is None or not _TRAINING_FLAG.search(err.fix):
            raise
        fix = "Give a chat checkpoint of this family."
        raise CheckpointError(err.problem, where=err.where, fix=fix) from err


def _find_device(device: torch.device | str) -> torch.device:
    """Raises:
    ConfigError: there is no such device, or torch does not compute on it.
    """
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).add(1).item()
    # Torch says it in many ways: no such kind, not compiled in, no driver, no such number.
    except (RuntimeError, AssertionError, ImportError, ValueError) as err:
        count = torch.cuda.device_count()
        raise ConfigError(
            f"{str(device)!r} is no device that torch computes on here",
            where="device",
            fix=f"Give cpu, or one of {count} GPUs: cuda:0, ..." if count else "Give cpu.",
        ) from err
    return place


def _require_gpus(gpus: int) -> None:
    """Raises:
    ConfigError: there are fewer.
    """
    if not 1 <= gpus <= torch.cuda.device_count():
        raise ConfigError(
            f"{gpus} asked for, {torch.cuda.device_count()} found",
            where="gpus",
            fix="On a machine without GPUs leave it out.",
        )


def _is_given(value: object) -> bool:
    """By identity: 0 is a number of GPUs, a wrong one."""
    return value is not None and value is not False


def _refuse_several(**given: object) -> None:
    """Raise ConfigError if more than one of these settings is given."""
    names = [name for name, value in given.items() if _is_given(value)]
    if len(names) > 1:
        raise ConfigError(
            f"{' and '.join(names)} exclude each other", where="load_model", fix="Give one."
        )


def _spread(path: str, config: InternVLChatConfig, gpus: int) -> dict[str, int]:
    """Where each part of a checkpoint goes.

    Raises:
        ConfigError: there are fewer GPUs, or the modules have other names than the map's.
    """
    _require_gpus(gpus)
    has_lora = config.use_llm_lora or config.use_backbone_lora or config.lora
    if has_lora and has_model_weights(Path(path)):
        raise ConfigError(
            f"{path} carries LoRA layers inside, which cannot be spread",
            where="gpus",
            fix="Merge them first: internvl-chat merge-lora.",
        )
    return split_model(config, gpus)


def _warn_of_four_bits(settings: BitsAndBytesConfig | None) -> None:
    """The guide, section BNB 4-bit Quantization: InternViT-6B does not survive it."""
    if settings is None or not settings.load_in_4bit:
        return
    if "vision_model" not in (settings.llm_int8_skip_modules or []):
        logger.warning(
            "4-bit quantization of the vision tower may make answers nonsensical: InternViT-6B "
            "does not survive it. Add 'vision_model' to llm_int8_skip_modules, or load in 8 bits."
        )
