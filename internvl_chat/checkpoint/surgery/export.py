"""``export``: a checkpoint in another layout, dtype or cut."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import InternVLForConditionalGeneration

from internvl_chat.checkpoint.artifacts import write_config
from internvl_chat.checkpoint.card.files import write_surgery_card
from internvl_chat.checkpoint.card.usage import Kind
from internvl_chat.checkpoint.hub import local_code, local_model
from internvl_chat.checkpoint.hub_names import name_of_snapshot
from internvl_chat.checkpoint.save import MAX_SHARD_BYTES
from internvl_chat.checkpoint.skeleton import skeleton_of
from internvl_chat.checkpoint.surgery import native
from internvl_chat.checkpoint.surgery.merged import MergedCheckpoint, is_exact, open_merged
from internvl_chat.checkpoint.surgery.probe import (
    fits_in_memory,
    logits_of,
    logits_of_checkpoint,
    make_probe,
    require_same,
)
from internvl_chat.checkpoint.surgery.published_code import PublishedCode, read_code
from internvl_chat.checkpoint.surgery.published_layout import (
    all_names,
    require_code_fits,
    write_published_files,
)
from internvl_chat.checkpoint.surgery.remembered import remembered_code
from internvl_chat.checkpoint.surgery.write import (
    Progress,
    base_of_adapter,
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
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)

BASE = "base"
"""For ``code``: of the published checkpoint that training began with, as its files remember."""
Layout = Literal["internvl_chat", "native"]
_CLASSES: dict[str, Any] = {
    "internvl_chat": InternVLChatModel,
    "native": InternVLForConditionalGeneration,
}
"""What loads a layout."""


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
    code: str | None = None,
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
        code: folder of a published checkpoint whose Python files, configuration and tokenizer go
            with the weights in place of ours; they are copied, never run. ``base`` is the one that
            training began with.
        dtype: of the written weights; each its own by default.
        max_shard_bytes: of a weight file.
        progress: told after every file.

    Raises:
        CheckpointError: the checkpoint is broken, the layout or the published code cannot
            represent the model (and why), or the written model's logits differ.
        ConfigError: no such layout, one that takes no code, or ``output_dir`` is taken.
    """
    _require_layout(layout, code)
    refuse_existing(Path(output_dir))
    published = _published(code, checkpoint := local_model(checkpoint))
    merged = open_merged(checkpoint)
    tensors = _tensors_of(merged, layout, published, checkpoint)
    facts = {} if published is None else {"code": _named(published.directory)}
    with new_directory(Path(output_dir)) as directory:
        write_weights(
            tensors, directory, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
        if layout == "native":
            _write_native_files(merged, tensors, directory, dtype)
        else:
            write_files_beside(merged.config, merged.path, directory, dtype=dtype)
        if published is not None:
            written = stored_dtype(next(iter(tensors.values())), dtype)
            write_published_files(published, merged.config, merged.path, directory, dtype=written)
        difference = None
        if fits_in_memory(tensors.values()):
            difference = _compare(merged, checkpoint, directory, _CLASSES[layout], dtype)
        else:
            logger.warning("too little memory to run the model in fp32: logits are not compared")
        write_provenance(merged, directory, f"export --layout {layout}", **facts)
    write_surgery_card(
        Path(output_dir),
        Path(checkpoint),
        kind=_kind(layout, published),
        merged=bool(merged.lora_weights),
        base=base_of_adapter(checkpoint),
    )
    return ExportReport(tensors=len(tensors), merged=len(merged.lora_weights), logits=difference)


def _published(code: str | None, checkpoint: str) -> PublishedCode | None:
    if code == BASE:
        code = remembered_code(checkpoint)
        logger.info("the code of %s goes along", code)
    return None if code is None else read_code(local_code(code))


def _kind(layout: str, published: PublishedCode | None) -> Kind:
    if layout == "native":
        return "native"
    return "whole" if published is None else "published"


def _named(directory: Path) -> str:
    """A model on the hub by its commit, a folder by its own name."""
    return str(name_of_snapshot(directory) or directory.resolve().name)


def _require_layout(layout: str, code: str | None) -> None:
    if layout not in get_args(Layout):
        raise ConfigError(
            f"no layout {layout!r}", where="--layout", fix=f"Give {' or '.join(get_args(Layout))}."
        )
    if code is not None and layout == "native":
        raise ConfigError(
            "transformers' own class takes no code along",
            where="--code",
            fix="Leave out --code or --layout native.",
        )


def _tensors_of(
    merged: MergedCheckpoint, layout: str, published: PublishedCode | None, checkpoint: str
) -> dict[str, TensorSource]:
    """The weights under the names of the layout.

    Raises:
        CheckpointError: it cannot represent the model.
    """
    if published is not None:
        tensors = all_names(merged.tensors, skeleton_of(merged.config))
        require_code_fits(published, merged.config, tensors, checkpoint)
        return tensors
    if layout != "native":
        return merged.tensors
    reasons = native.reasons_against(merged.config, merged.tensors)
    if reasons:
        raise CheckpointError(
            f"transformers' InternVL class cannot represent it: {'; '.join(reasons)}",
            where=checkpoint,
            fix="Export it with --layout internvl_chat, which loads with trust_remote_code.",
        )
    return native.native_tensors(merged.tensors)


def _write_native_files(
    merged: MergedCheckpoint,
    tensors: dict[str, TensorSource],
    directory: Path,
    dtype: torch.dtype | None,
) -> None:
    tokenizer = load_tokenizer(str(merged.path))
    config = native.native_config(merged.config, tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN))
    config.dtype = stored_dtype(next(iter(tensors.values())), dtype)
    write_config(config, directory)
    native.write_processor(merged.config, tokenizer, merged.path, directory)
    native.write_generation_config(merged.config, tokenizer, merged.path, directory)


def _compare(
    merged: MergedCheckpoint,
    checkpoint: str,
    directory: Path,
    kind: Any,
    dtype: torch.dtype | None,
) -> float:
    """Logits of the written model, loaded by its class, against the checkpoint's.

    Raises:
        CheckpointError: they differ though the weights do not.
    """
    probe = make_probe(merged.config, load_tokenizer(str(merged.path)))
    wanted = logits_of_checkpoint(checkpoint, probe)
    model: Any = kind.from_pretrained(directory, dtype=torch.float32).eval()
    found = logits_of(model, probe)
    del model
    gc.collect()
    return require_same(wanted, found, exact=is_exact(merged, dtype), where=checkpoint)
