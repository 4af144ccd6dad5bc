"""``merge-lora``: an adapter becomes part of the weights."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from internvl_chat.checkpoint.card.files import write_surgery_card
from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.partition import parameters_and_buffers, write_tensor
from internvl_chat.checkpoint.save import MAX_SHARD_BYTES
from internvl_chat.checkpoint.surgery.merged import MergedCheckpoint, open_merged
from internvl_chat.checkpoint.surgery.probe import (
    Probe,
    fits_in_memory,
    largest_difference,
    logits_of,
    logits_of_checkpoint,
    make_probe,
    tolerance_for,
)
from internvl_chat.checkpoint.surgery.write import (
    Progress,
    base_of_adapter,
    new_directory,
    refuse_existing,
    write_files_beside,
    write_provenance,
    write_weights,
)
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)

Check = Literal["auto", "logits", "weights"]


@dataclass(frozen=True, kw_only=True)
class LogitCheck:
    """Largest differences of logits between models, all run in fp32."""

    exact: float
    """Adapter beside the base, and merged without rounding: the arithmetic of the merge."""
    stored: float
    """Adapter beside the base, and merged as stored: rounding included."""
    effect: float
    """Adapter beside the base, and the base alone: what there is to lose."""

    @property
    def effect_is_lost(self) -> bool:
        """Whether rounding moves the logits about as much as the adapter does."""
        return self.stored > 0.5 * self.effect > 0


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did."""

    merged: int
    """Weights that a LoRA went into; each was checked against base and adapter."""
    logits: LogitCheck | None
    """``None`` where the model was not run."""


def merge_lora(
    checkpoint: str,
    output_dir: str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    check: Check = "auto",
    progress: Progress | None = None,
) -> MergeReport:
    """Write the full checkpoint that an adapter and its base make together.

    Works weight by weight, in the memory of one output file. Sums are taken in fp32 and rounded
    once. Every merged weight is read back and compared with base and adapter; then both models are
    run in fp32 on an image and a question, if there is memory for one of them.

    Args:
        checkpoint: adapter-only directory, or a checkpoint of the original layout
            (``use_llm_lora``) with the LoRA weights inside.
        output_dir: new.
        dtype: of the written weights; each its base's by default.
        max_shard_bytes: of a weight file.
        check: run both models (``logits``), only compare weights (``weights``), or the first where
            memory allows.
        progress: told after every file.

    Raises:
        CheckpointError: there is no adapter, it does not fit or would count twice, or the merged
            model differs from the adapter's.
        ConfigError: ``output_dir`` is taken, or the disk is full.
    """
    refuse_existing(Path(output_dir))
    merged = open_merged(checkpoint := local_model(checkpoint))
    if not merged.lora_weights:
        raise CheckpointError(
            "has no LoRA weights to merge",
            where=checkpoint,
            fix="Give the adapter's directory, not the base model's.",
        )
    run = check == "logits" or (check == "auto" and fits_in_memory(merged.tensors.values()))
    if check == "auto" and not run:
        logger.warning("too little memory to run the model in fp32: only the weights are checked")
    with new_directory(Path(output_dir)) as directory:
        write_weights(
            merged.tensors,
            directory,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            progress=progress,
        )
        write_files_beside(merged.config, merged.path, directory, dtype=dtype)
        logits = _compare_logits(merged, checkpoint, directory) if run else None
        _write_provenance(merged, directory)
    write_surgery_card(
        Path(output_dir),
        Path(checkpoint),
        kind="whole",
        merged=True,
        base=base_of_adapter(checkpoint),
    )
    return MergeReport(merged=len(merged.lora_weights), logits=logits)


def _write_provenance(merged: MergedCheckpoint, directory: Path) -> None:
    write_provenance(
        merged,
        directory,
        "merge-lora",
        adapter_sha256=merged.adapter_sha256,
        merged_weights=len(merged.lora_weights),
        scales=sorted({weight.scale for weight in merged.lora_weights.values()}),
    )


def _compare_logits(merged: MergedCheckpoint, checkpoint: str, directory: Path) -> LogitCheck:
    probe = make_probe(merged.config, load_tokenizer(str(merged.path)))
    adapter = logits_of_checkpoint(checkpoint, probe)
    model = InternVLChatModel.from_pretrained(directory, dtype=torch.float32).eval()
    stored = largest_difference(adapter, logits_of(model, probe))
    exact, effect = _exact_and_effect(merged, model, probe, adapter)
    del model
    gc.collect()
    if not exact <= tolerance_for(adapter):
        raise CheckpointError(
            f"the merged model's logits differ from the adapter's by {exact:.2e}, more than "
            f"{tolerance_for(adapter):.0e}",
            where=checkpoint,
            fix="The merged weights stay aside and were not put in place; please report this.",
        )
    check = LogitCheck(exact=exact, stored=stored, effect=effect)
    if check.effect_is_lost:
        logger.warning(
            "rounding the merged weights moves the logits by %.2g, the adapter itself by %.2g: "
            "its effect may be lost. Write them in fp32 (--dtype float32) to keep it",
            stored,
            effect,
        )
    return check


def _exact_and_effect(
    merged: MergedCheckpoint, model: InternVLChatModel, probe: Probe, adapter: torch.Tensor
) -> tuple[float, float]:
    """Differences to the adapter's logits without rounding, and without the adapter.

    Args:
        merged: the checkpoint.
        model: the merged model in fp32; its weights are replaced by unrounded ones, then by those
            of the base.
        probe: the question.
        adapter: (1, T, V) logits of the adapter beside its base.
    """
    parameters = parameters_and_buffers(model)
    for name, source in merged.tensors.items():
        write_tensor(parameters[name], source)
    exact = largest_difference(adapter, logits_of(model, probe))
    for name, weight in merged.lora_weights.items():
        write_tensor(parameters[name], weight.base)
    return exact, largest_difference(adapter, logits_of(model, probe))
