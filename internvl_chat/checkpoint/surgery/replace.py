"""``replace-llm``: another language model behind the same vision tower."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.hub_names import portable_name
from internvl_chat.checkpoint.load import grow_vocabulary
from internvl_chat.checkpoint.save import MAX_SHARD_BYTES
from internvl_chat.checkpoint.skeleton import settled_skeleton
from internvl_chat.checkpoint.sources import llm_config_of
from internvl_chat.checkpoint.starting_values import new_projector
from internvl_chat.checkpoint.surgery.merged import MergedCheckpoint, open_merged
from internvl_chat.checkpoint.surgery.write import (
    Progress,
    new_directory,
    refuse_existing,
    write_files_beside,
    write_provenance,
    write_weights,
)
from internvl_chat.checkpoint.tensor_files import TensorSource, open_weights
from internvl_chat.checkpoint.tokenizer import (
    add_special_tokens,
    check_template_tokens,
    load_tokenizer,
)
from internvl_chat.errors import CheckpointError
from internvl_chat.model.chat import DEFAULT_TEMPLATE
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class ReplaceReport:
    """What the new checkpoint is made of."""

    new_tokens: int
    """Special tokens that the language model did not have."""
    new_projector: bool
    """Whether the projector starts from random numbers."""


def replace_llm(
    checkpoint: str,
    llm: str,
    output_dir: str,
    *,
    template: str | None = None,
    new_mlp: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> ReplaceReport:
    """Write a chat checkpoint with the vision tower of one model and another language model.

    The special tokens are added to the new model's tokenizer; their rows are the mean of the old
    ones. The projector stays if the widths agree; it was trained for the former language model
    all the same, so the result needs training.

    Args:
        checkpoint: chat checkpoint; LoRA weights in it are merged on the way.
        llm: checkpoint of a causal language model, or of a chat model, whose own is taken.
        output_dir: new.
        template: chat template of the new language model; the old one by default.
        new_mlp: start the projector from random numbers.
        seed: of these numbers.
        dtype: of the written weights; each its own by default.
        max_shard_bytes: of a weight file.
        progress: told after every file.

    Raises:
        CheckpointError: a checkpoint is broken, or the projector does not fit.
        ConfigError: ``output_dir`` is taken, or the template does not belong to the tokenizer.
    """
    refuse_existing(Path(output_dir))
    checkpoint, llm = local_model(checkpoint), local_model(llm)
    merged = open_merged(checkpoint)
    new = _take_llm(merged, llm, template)
    if not new_mlp:
        _require_same_width(merged.config, new.config, checkpoint)
    tensors = _tensors(merged, new, llm, seed if new_mlp else None)
    with new_directory(Path(output_dir)) as directory:
        write_weights(
            tensors, directory, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
        write_files_beside(
            new.config, merged.path, directory, dtype=dtype, llm=Path(llm), tokenizer=new.tokenizer
        )
        write_provenance(merged, directory, "replace-llm", llm=portable_name(llm))
    return ReplaceReport(new_tokens=new.num_new_tokens, new_projector=new_mlp)


@dataclass(frozen=True, kw_only=True)
class _NewModel:
    """The chat model around another language model, before its weights."""

    config: InternVLChatConfig
    """With a vocabulary that holds the tokenizer."""
    tokenizer: PreTrainedTokenizerBase
    num_new_tokens: int
    native_rows: int
    """Of the vocabulary's tensors in the language model's files."""


def _take_llm(merged: MergedCheckpoint, llm: str, template: str | None) -> _NewModel:
    tokenizer = load_tokenizer(llm)
    num_new_tokens = add_special_tokens(tokenizer)
    config = _new_config(merged.config, llm, template)
    check_template_tokens(tokenizer, config.template or DEFAULT_TEMPLATE)
    llm_config: Any = config.llm_config
    native_rows = llm_config.vocab_size
    llm_config.vocab_size = max(native_rows, len(tokenizer))
    return _NewModel(
        config=config,
        tokenizer=tokenizer,
        num_new_tokens=num_new_tokens,
        native_rows=native_rows,
    )


def _tensors(
    merged: MergedCheckpoint, new: _NewModel, llm: str, new_mlp_seed: int | None
) -> dict[str, TensorSource]:
    """Vision tower and projector of one model (``None``: its own projector), the other's LLM."""
    available: dict[str, TensorSource] = {
        name: source
        for name, source in merged.tensors.items()
        if not name.startswith(names.LLM_PREFIX)
    }
    available |= names.with_prefix(open_weights(Path(llm)), names.LLM_PREFIX)
    skeleton = settled_skeleton(new.config, available, {}, llm)
    if new_mlp_seed is not None:
        available |= new_projector(skeleton, new_mlp_seed)
    match = names.match_names(skeleton.aliases, available)
    tensors: dict[str, TensorSource] = dict(match.sources)
    grow_vocabulary(tensors, skeleton, new.native_rows, len(new.tokenizer), new.num_new_tokens)
    names.require_fit(
        f"{merged.where} with {llm}",
        missing=match.missing,
        surplus=match.surplus,
        shapes={name: (t.shape, skeleton.shapes[name]) for name, t in tensors.items()},
    )
    return tensors


def _new_config(old: InternVLChatConfig, llm: str, template: str | None) -> InternVLChatConfig:
    values = copy.deepcopy(old.to_dict())
    values["llm_config"] = llm_config_of(Path(llm))
    if template is not None:
        values["template"] = template
        values.pop("system_message", None)  # it was the former template's
    config = InternVLChatConfig.from_dict(values)
    config.dtype = old.dtype
    return config


def _require_same_width(old: Any, new: Any, where: str) -> None:
    before, after = old.llm_config.hidden_size, new.llm_config.hidden_size
    if before != after:
        raise CheckpointError(
            f"its projector ends in {before} numbers a token, the new language model takes {after}",
            where=where,
            fix="Start a new projector (--new-mlp) and train it.",
        )
