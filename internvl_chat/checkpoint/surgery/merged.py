"""A chat checkpoint on disk, seen as one without adapters."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.adapters import find_adapter_weights
from internvl_chat.checkpoint.agreement import require_tokenizer_fits
from internvl_chat.checkpoint.artifacts import PREPROCESSOR_NAME
from internvl_chat.checkpoint.load import TRAINED_IN_4BIT, fit_tensors
from internvl_chat.checkpoint.skeleton import settled_skeleton
from internvl_chat.checkpoint.sources import (
    ADAPTER_CONFIG_NAME,
    find_companion,
    find_sources,
    read_json,
    refuse_quantised,
    resolve_adapter_base,
)
from internvl_chat.checkpoint.surgery.lora_merge import (
    MergedLoraWeight,
    merge_adapters,
    require_every_target,
    scales_of_layout,
    scales_of_peft,
)
from internvl_chat.checkpoint.tensor_files import TensorSource
from internvl_chat.checkpoint.tokenizer import has_tokenizer, load_tokenizer
from internvl_chat.config import SourceConfig
from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import is_adapter

if TYPE_CHECKING:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

logger = logging.getLogger(__name__)

PROVENANCE_NAME = "provenance.json"
"""What was done to a checkpoint, oldest first; travels from checkpoint to checkpoint."""


@dataclass(frozen=True, kw_only=True)
class MergedCheckpoint:
    """Configuration and tensors of a chat model whose LoRA weights are merged when read."""

    where: str
    path: Path
    """Directory with tokenizer and image preprocessing."""
    config: InternVLChatConfig
    """Without adapters; ``dtype`` is that of the first weight."""
    tensors: dict[str, TensorSource]
    """By parameter name, in the model's order, tied weights once."""
    lora_weights: dict[str, MergedLoraWeight]
    """Those of ``tensors`` that a LoRA goes into; empty for a checkpoint without adapters."""
    history: tuple[dict[str, Any], ...]
    """Entries of ``provenance.json``."""
    adapter_sha256: str | None = None
    """Of the adapter's file, where there is one."""


def open_merged(path: str) -> MergedCheckpoint:
    """Look at a chat checkpoint: whole, with LoRA weights inside, or adapter-only.

    Reads configurations and headers; a weight is read when it is asked for.

    Raises:
        CheckpointError: a file is missing or broken, the model is of another kind, names and
            shapes do not fit, the tokenizer is another model's, the model was wrapped twice, or the
            adapter was merged already.
    """
    directory = Path(path)
    sources = find_sources(SourceConfig.whole(path))
    config = sources.config
    refuse_quantised(config, path)
    base, sha256 = directory, None
    if sources.adapter:
        where = directory / ADAPTER_CONFIG_NAME
        scales = scales_of_peft(sources.adapter_config, str(where))
        base = resolve_adapter_base(directory)
        sha256 = _sha256(find_adapter_weights(directory))
    else:
        scales = scales_of_layout(config, sources.where)
    history = _history(base)
    if sha256 is not None and any(entry.get("adapter_sha256") == sha256 for entry in history):
        raise CheckpointError(
            "its base is the model that this very adapter was merged into: it would count twice",
            where=path,
            fix=f"Merge it into the checkpoint that it was trained on, not into {base}.",
        )
    tensors, lora_weights = merge_adapters(
        sources.tensors | sources.adapter, scales, where=sources.where
    )
    if not sources.adapter:
        _require_promised_lora(config, lora_weights, sources.where)
    config.use_llm_lora = config.use_backbone_lora = 0
    config.lora = None
    _tell_of_four_bits(config, path)
    skeleton = settled_skeleton(config, tensors, sources.replaced, sources.where)
    fitted = fit_tensors(skeleton, tensors, sources.where)
    if sources.adapter:
        matrices = [name for name, tensor in fitted.items() if len(tensor.shape) == 2]
        require_every_target(sources.adapter_config, matrices, lora_weights, path)
    if has_tokenizer(directory) or is_adapter(directory):
        require_tokenizer_fits(load_tokenizer(path), config, path)
    config.dtype = next(iter(fitted.values())).dtype
    preprocessor = find_companion(directory, PREPROCESSOR_NAME)
    if preprocessor.is_file():
        read_json(preprocessor)  # before anything is written
    return MergedCheckpoint(
        where=sources.where,
        path=preprocessor.parent,
        config=config,
        tensors=fitted,
        lora_weights=lora_weights,
        history=tuple(history),
        adapter_sha256=sha256,
    )


def _tell_of_four_bits(config: InternVLChatConfig, path: str) -> None:
    """An adapter of QLoRA was trained beside the rounding of 4 bits, which a merge leaves out."""
    if not hasattr(config, TRAINED_IN_4BIT):
        return
    delattr(config, TRAINED_IN_4BIT)
    logger.warning(
        "%s was trained on its base in 4 bits: on the base's own weights, which it is merged "
        "into, answers differ a little from those in training. Evaluate the merged model; the "
        "adapter with --load-in-4bit is what was trained",
        path,
    )


def _require_promised_lora(
    config: InternVLChatConfig, lora_weights: Collection[str], where: str
) -> None:
    """Raises:
    CheckpointError: ``config.json`` speaks of LoRA layers in a tower that the files have none for.
    """
    for key, rank, prefix in (
        ("use_llm_lora", config.use_llm_lora, names.LLM_PREFIX),
        ("use_backbone_lora", config.use_backbone_lora, names.VISION_PREFIX),
    ):
        if rank and not any(name.startswith(prefix) for name in lora_weights):
            raise CheckpointError(
                f"config.json says {key} {rank}, and the files hold no LoRA weights for it",
                where=where,
                fix="Write 0 there if they were merged, else copy the weights again.",
            )


def is_exact(merged: MergedCheckpoint, dtype: torch.dtype | None) -> bool:
    """Whether no weight is rounded when it is written: by a conversion, or after a merge."""
    changed = merged.tensors if dtype is not None else merged.lora_weights
    return all((dtype or source.dtype) == torch.float32 for source in changed.values())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _history(directory: Path) -> list[dict[str, Any]]:
    path = directory / PROVENANCE_NAME
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["history"]
    except (ValueError, KeyError, TypeError) as err:
        raise CheckpointError(
            f"damaged ({err!r})", where=str(path), fix="Move it away if its record is not needed."
        ) from err
    return [entry for entry in entries if isinstance(entry, dict)]
