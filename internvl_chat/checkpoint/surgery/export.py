"""``export``: a checkpoint in another layout, dtype or cut."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import InternVLForConditionalGeneration

from internvl_chat.checkpoint.save import MAX_SHARD_BYTES
from internvl_chat.checkpoint.surgery import native
from internvl_chat.checkpoint.surgery.merged import MergedCheckpoint, open_merged
from internvl_chat.checkpoint.surgery.probe import (
    fits_in_memory,
    largest_difference,
    logits_of,
    logits_of_checkpoint,
    make_probe,
    tolerance_for,
)
from internvl_chat.checkpoint.surgery.write import (
    Progress,
    new_directory,
    refuse_existing,
    stored_dtype,
    write_files_beside,
    write_provenance,
    write_weights,
)
from internvl_chat.checkpoint.tensor_files import TensorSource
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.constants import IMG_CONTEXT_TOKEN

logger = logging.getLogger(__name__)

Layout = Literal["internvl_chat", "native"]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    tensors: int
    merged: int
    """Weights that a LoRA was merged into on the way."""
    logits: float | None
    """Largest difference between the two models in fp32; ``None`` where they were not run."""


def export(
    checkpoint: str,
    output_dir: str,
    *,
    layout: str = "internvl_chat",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a chat checkpoint anew, LoRA weights merged.

    Args:
        checkpoint: a chat checkpoint of any kind, safetensors or PyTorch files.
        output_dir: new.
        layout: ``internvl_chat``, that of the published V1-2 checkpoints, or ``native``, that of
            transformers' ``InternVLForConditionalGeneration``, which needs no remote code.
        dtype: of the written weights; each its own by default.
        max_shard_bytes: of a weight file.
        progress: told after every file.

    Raises:
        CheckpointError: the checkpoint is broken, the layout cannot represent the model (and why),
            or the written model's logits differ.
        ConfigError: no such layout, or ``output_dir`` is taken.
    """
    if layout not in get_args(Layout):
        raise ConfigError(
            f"no layout {layout!r}", where="--layout", fix=f"Give {' or '.join(get_args(Layout))}."
        )
    refuse_existing(Path(output_dir))
    merged = open_merged(checkpoint)
    tensors = merged.tensors
    if layout == "native":
        reasons = native.reasons_against(merged.config, tensors)
        if reasons:
            raise CheckpointError(
                f"transformers' InternVL class cannot represent it: {'; '.join(reasons)}",
                where=checkpoint,
                fix="Export it with --layout internvl_chat, which loads with trust_remote_code.",
            )
        tensors = native.native_tensors(tensors)
    with new_directory(Path(output_dir)) as directory:
        write_weights(
            tensors, directory, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
        if layout == "native":
            _write_native_files(merged, tensors, directory, dtype)
        else:
            write_files_beside(merged.config, merged.path, directory, dtype=dtype)
        difference = None
        if layout == "native" and fits_in_memory(tensors.values()):
            difference = _compare(merged, checkpoint, directory, exact=_is_exact(merged, dtype))
        elif layout == "native":
            logger.warning("too little memory to run the model in fp32: logits are not compared")
        write_provenance(merged, directory, f"export --layout {layout}")
    return ExportReport(tensors=len(tensors), merged=len(merged.lora_weights), logits=difference)


def _write_native_files(
    merged: MergedCheckpoint,
    tensors: dict[str, TensorSource],
    directory: Path,
    dtype: torch.dtype | None,
) -> None:
    tokenizer = load_tokenizer(str(merged.path))
    config = native.native_config(merged.config, tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN))
    config.dtype = stored_dtype(next(iter(tensors.values())), dtype)
    config.save_pretrained(directory)
    native.write_processor(merged.config, tokenizer, merged.path, directory)
    native.write_generation_config(merged.config, tokenizer, merged.path, directory)


def _is_exact(merged: MergedCheckpoint, dtype: torch.dtype | None) -> bool:
    """Whether no weight was rounded: by a conversion, or after a merge."""
    changed = merged.tensors if dtype is not None else merged.lora_weights
    return all(stored_dtype(source, dtype) == torch.float32 for source in changed.values())


def _compare(merged: MergedCheckpoint, checkpoint: str, directory: Path, *, exact: bool) -> float:
    """Logits of the written model against the checkpoint's; their largest difference.

    Raises:
        CheckpointError: they differ though the weights do not.
    """
    probe = make_probe(merged.config, load_tokenizer(str(merged.path)))
    wanted = logits_of_checkpoint(checkpoint, probe)
    model: Any = InternVLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32
    ).eval()
    difference = largest_difference(wanted, logits_of(model, probe))
    del model
    gc.collect()
    # Rounded weights are other weights; their bits were compared before.
    if exact and not difference <= tolerance_for(wanted):
        raise CheckpointError(
            f"the exported model's logits differ by {difference:.2e}, more than "
            f"{tolerance_for(wanted):.0e}",
            where=checkpoint,
            fix="The export stays aside and was not put in place; please report this.",
        )
    return difference
