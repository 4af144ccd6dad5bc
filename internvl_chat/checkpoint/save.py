"""From a model in training to a checkpoint that any process can load.

All ranks call these functions; rank 0 writes. Under ZeRO-3 parameters are gathered one at a time,
and rank 0 holds at most one shard of the file it is writing.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.artifacts import copy_companion, write_companions
from internvl_chat.checkpoint.hub_names import name_of_snapshot
from internvl_chat.checkpoint.lora_settings import saved_module
from internvl_chat.checkpoint.partition import gathered_tensors, parameters_and_buffers
from internvl_chat.checkpoint.skeleton import Skeleton, skeleton_of
from internvl_chat.checkpoint.sources import GENERATION_NAME, find_companion
from internvl_chat.checkpoint.tensor_files import (
    SAFETENSORS_INDEX_NAME,
    SAFETENSORS_NAME,
    write_safetensors,
)
from internvl_chat.config import DecodeConfig, NormalizeType
from internvl_chat.costs.parameters import full_numel, full_shape
from internvl_chat.files import write_json
from internvl_chat.model.adapter import ADAPTER_WEIGHTS_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5 * 10**9
_ADAPTER = "default"
_SAVED_WHOLE = ("mlp1", "lm_head")
"""Parts that may train beside an adapter unasked, and are stored whole in its file (PEFT's
``modules_to_save``)."""


def save_checkpoint_files(
    model: InternVLChatModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    is_main: bool = True,
    normalize_type: NormalizeType = "imagenet",
    decode: DecodeConfig | None = None,
    begun_from: str | None = None,
    dtype: torch.dtype | None = None,
    adapter_only: bool | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint that loads as it is: weights, configuration, tokenizer, code.

    A model with adapters whose other weights are those of a checkpoint on disk is saved as an
    adapter (PEFT's files, which name that checkpoint); otherwise everything is written, adapters
    in the original's layout.

    Args:
        model: unwrapped from DeepSpeed or DDP.
        tokenizer: with the special tokens.
        directory: exists; files of the same names are replaced.
        is_main: whether this is rank 0.
        normalize_type: pixel statistics for ``preprocessor_config.json``.
        decode: how files became RGB, for the same file; None says nothing of it.
        begun_from: chat checkpoint whose settings of ``generate`` go along, if it has any.
        dtype: floating-point weights are written in it; default: as they are.
        adapter_only: force one or the other.
        max_shard_bytes: a larger model is cut into several files.

    Raises:
        CheckpointError: a tensor is missing, surplus, of zero size or of the wrong shape. Nothing
            has been written then.
    """
    tensors = _check(parameters_and_buffers(model), skeleton_of(model.config), str(directory))
    adapter = plan_adapter(model) if adapter_only is not False else None
    if adapter_only and adapter is None:
        raise ValueError("adapter_only=True, but the model is not a checkpoint plus an adapter")
    if adapter is not None:
        _save_adapter(adapter, tensors, directory, is_main=is_main, dtype=dtype)
    else:
        _save_weights(tensors, directory, is_main, dtype, max_shard_bytes)
    if is_main:
        write_companions(
            model.config if adapter is None else _without_settings(model.config),
            tokenizer,
            directory,
            normalize_type=normalize_type,
            decode=decode,
            dtype=dtype,
        )
        if begun_from is not None:
            known = find_companion(begun_from, GENERATION_NAME)
            copy_companion(known.parent, directory, GENERATION_NAME)


def _without_settings(config: InternVLChatConfig) -> InternVLChatConfig:
    """For the files beside an adapter, whose settings are in ``adapter_config.json``."""
    plain = copy.deepcopy(config)
    plain.lora = None
    return plain


def _check(tensors: dict[str, Tensor], skeleton: Skeleton, where: str) -> dict[str, Tensor]:
    """Compare with what the configuration builds; drops further names of tied tensors."""
    first = {name: names_[0] for names_ in skeleton.aliases.values() for name in names_}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kept.setdefault(first.get(name, name), tensor)
    names.require_fit(
        where,
        missing=[name for name in skeleton.aliases if name not in kept],
        surplus=[name for name in kept if name not in skeleton.aliases],
        shapes={
            name: (full_shape(tensor), skeleton.shapes[name])
            for name, tensor in kept.items()
            if name in skeleton.shapes
        },
    )
    return {name: kept[name] for name in skeleton.aliases}


def _save_weights(
    tensors: Mapping[str, Tensor],
    directory: Path,
    is_main: bool,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    shards = plan_shards(
        {name: full_numel(t) * _stored(t, dtype).itemsize for name, t in tensors.items()},
        max_shard_bytes,
    )
    for file_name, members in shards.items():
        _write_file(directory / file_name, {n: tensors[n] for n in members}, is_main, dtype)
    if is_main and len(shards) > 1:
        total = sum(full_numel(t) * _stored(t, dtype).itemsize for t in tensors.values())
        write_index(directory, shards, total)


def write_index(directory: Path, shards: Mapping[str, list[str]], total_bytes: int) -> None:
    """Write which tensor lies in which file.

    Args:
        directory: of the files.
        shards: file name -> tensor names.
        total_bytes: of all tensors.
    """
    weight_map = {name: file_name for file_name, members in shards.items() for name in members}
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(directory / SAFETENSORS_INDEX_NAME, index)


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _write_file(
    path: Path, tensors: Mapping[str, Tensor], is_main: bool, dtype: torch.dtype | None
) -> None:
    """Gather these tensors one by one and write them; every rank takes part."""
    values: dict[str, Tensor] = {}
    for name, value in gathered_tensors(tensors.items(), keep=is_main):
        if value is not None:
            values[name] = value.to(_stored(value, dtype)).contiguous()
    if is_main:
        write_safetensors(path, values)


def plan_shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """Cut a model into files of at most ``limit`` bytes each, in order.

    Args:
        sizes: bytes by name.
        limit: a single larger tensor gets a file of its own.

    Returns:
        File name -> tensor names.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {SAFETENSORS_NAME: groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": g for i, g in enumerate(groups, 1)}


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """How a model is stored as a checkpoint on disk plus an adapter."""

    base: str
    lora: tuple[str, ...]
    """Parameter names of the adapters."""
    whole: tuple[str, ...]
    """Other parameters that differ from the base."""
    modules_to_save: tuple[str, ...]
    settings: dict[str, Any]
    """For ``peft.LoraConfig``."""


def plan_adapter(model: InternVLChatModel) -> AdapterPlan | None:
    """Whether and how the model can be saved as an adapter; the reason against is logged."""
    parameters = dict(model.named_parameters())
    lora = tuple(name for name in parameters if names.is_lora(name))
    if not lora:
        return None
    base = getattr(model, "adapter_base", None)
    if base is None:
        logger.info(
            "checkpoints hold the whole model, not only the adapter: %s",
            getattr(model, "no_adapter_base_reason", "no base checkpoint is known"),
        )
        return None
    changed = changed_beside(model)
    others = [name for name, module in changed.items() if module is None]
    if others:
        logger.info("checkpoints hold the whole model: %s trains beside the adapter", others[0])
        return None
    return AdapterPlan(
        base=base,
        lora=lora,
        whole=tuple(changed),
        modules_to_save=tuple(sorted({module for module in changed.values() if module})),
        settings=_adapter_settings(model, lora),
    )


def changed_beside(model: InternVLChatModel) -> dict[str, str | None]:
    """Parameters other than adapters that differ from the base -> the module that an adapter saves
    them with; None where it cannot, so that the whole model is saved."""
    loaded_whole: tuple[str, ...] = getattr(model, "adapter_modules", ())
    words = (*loaded_whole, *(one for one in _SAVED_WHOLE if one not in loaded_whole))
    parameters = dict(model.named_parameters())
    homes = {
        name: saved_module(names.unwrapped_name(name), words)
        for name in parameters
        if not names.is_lora(name)
    }
    return {
        name: module
        for name, module in homes.items()
        if parameters[name].requires_grad or module in loaded_whole
    }


def _adapter_settings(model: InternVLChatModel, lora: Iterable[str]) -> dict[str, Any]:
    """LoraConfig for the whole chat model: its own, or one out of those of its towers."""
    if model.config.lora is not None:
        return dict(model.config.lora)
    layers: dict[str, set[str]] = {}
    for name in lora:
        tower, _, path = names.unwrapped_name(name).partition(".")
        match = re.fullmatch(r"(?:.*\.)?layers\.\d+\.(.+)\.lora_[AB]\..*", path)
        assert match is not None, name
        layers.setdefault(tower, set()).add(match[1])
    towers = {tower: getattr(model, tower).peft_config[_ADAPTER] for tower in layers}
    first = towers.get("language_model") or next(iter(towers.values()))
    patterns = [
        rf"{tower}\..*layers\.\d+\.(?:{'|'.join(re.escape(end) for end in sorted(ends))})"
        for tower, ends in layers.items()
    ]
    others = {rf"{tower}\..*": config for tower, config in towers.items() if config is not first}
    return {
        "r": first.r,
        "lora_alpha": first.lora_alpha,
        "lora_dropout": first.lora_dropout,
        "target_modules": "|".join(patterns),
        "rank_pattern": {pattern: config.r for pattern, config in others.items()},
        "alpha_pattern": {pattern: config.lora_alpha for pattern, config in others.items()},
    }


def _save_adapter(
    plan: AdapterPlan,
    tensors: Mapping[str, Tensor],
    directory: Path,
    *,
    is_main: bool,
    dtype: torch.dtype | None,
) -> None:
    chosen = {names.adapter_key(name): tensors[name] for name in (*plan.lora, *plan.whole)}
    _write_file(directory / ADAPTER_WEIGHTS_NAME, chosen, is_main, dtype)
    if is_main:
        from peft import LoraConfig

        model = name_of_snapshot(plan.base)  # on the hub: found from every machine, by its commit
        LoraConfig(
            base_model_name_or_path=plan.base if model is None else model.repo,
            revision=None if model is None else model.revision,
            modules_to_save=list(plan.modules_to_save) or None,
            inference_mode=True,
            # What AutoPeftModel loads the base with; PEFT imports no module of ours for it.
            auto_mapping={"base_model_class": "AutoModel", "parent_library": "transformers"},
            **plan.settings,
        ).save_pretrained(str(directory))
