"""The shape of a model without its weights, and which of its weights are one and the same."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.partition import pieces
from internvl_chat.checkpoint.sources import UNFIT_CONFIGURATION, said
from internvl_chat.checkpoint.tensor_files import TensorSource, numel
from internvl_chat.errors import CheckpointError

if TYPE_CHECKING:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skeleton:
    """Names and shapes of a model, without weights."""

    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, tuple[str, ...]]
    """First name -> all names of the same (tied) tensor."""
    vocabulary: frozenset[str]
    """Tensors with a row per token."""
    modules: tuple[str, ...]
    """Names of the modules that hold parameters."""
    linear: tuple[str, ...]
    """Names of the linear layers but the output head: what ``all-linear`` means."""


def skeleton_of(config: InternVLChatConfig, where: str = "config.json") -> Skeleton:
    """Build the model on the meta device and look at it.

    Args:
        config: of the model.
        where: it comes from, for messages.

    Raises:
        CheckpointError: no model can be made of this configuration.
    """
    model = model_without_weights(config, where)
    groups: dict[int, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        group = groups.setdefault(id(tensor), [])
        group.append(name)
        shapes[group[0]] = tuple(tensor.shape)
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = {id(module.weight) for module in embeddings if module is not None}
    return Skeleton(
        shapes=shapes,
        aliases={group[0]: tuple(group) for group in groups.values()},
        vocabulary=frozenset(groups[key][0] for key in rows if key in groups),
        modules=tuple(
            name
            for name, module in model.named_modules()
            if name and next(module.parameters(), None) is not None
        ),
        linear=tuple(
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not embeddings[1]
        ),
    )


def model_without_weights(
    config: InternVLChatConfig, where: str, *, dtype: torch.dtype = torch.float32
) -> InternVLChatModel:
    """Build the model on the meta device.

    Args:
        config: of the model; left as it is.
        where: it comes from, for messages.
        dtype: of its weights.

    Raises:
        CheckpointError: no model can be made of this configuration.
    """
    from transformers.initialization import meta_device_safe_creation_ops, no_init_weights
    from transformers.modeling_utils import local_torch_dtype

    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

    try:
        with (
            torch.device("meta"),
            meta_device_safe_creation_ops(),
            no_init_weights(),
            local_torch_dtype(dtype, "InternVLChatModel"),
        ):
            model = InternVLChatModel(copy.deepcopy(config))
    except UNFIT_CONFIGURATION as err:
        raise CheckpointError(
            f"no model can be made of its configuration ({said(err)})", where=where
        ) from err
    layers = config.vision_config.num_hidden_layers
    if config.select_layer not in range(-layers - 1, layers + 1):
        raise CheckpointError(
            f"select_layer is {config.select_layer!r}, the vision tower has {layers} layers",
            where=where,
        )
    tie_as_configured(model)
    return model


def settled_skeleton(
    config: InternVLChatConfig,
    available: dict[str, TensorSource],
    replaced: Mapping[str, TensorSource],
    where: str,
) -> Skeleton:
    """The skeleton of what the files hold, where the configuration ties weights that differ there.

    ``tie_word_embeddings`` beside an output head of its own is what a merge after new tokens
    leaves. transformers keeps the two apart then, so that is what the model computes, and neither
    is dropped here.

    Args:
        config: of the model; ``tie_word_embeddings`` of its language model becomes false where
            the weights differ.
        available: by the name in the files. A weight that was tied to one that an adapter
            replaced is added under its own name.
        replaced: what an adapter's whole modules took the place of, by name.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: no model can be made of this configuration.
    """
    skeleton = skeleton_of(config, where)
    for group in skeleton.aliases.values():
        if len(group) > 1 and _differ(group, available, replaced):
            logger.warning(
                "%s: config.json ties %s (tie_word_embeddings), but the files hold different "
                "values for them: they are kept apart",
                where,
                " and ".join(names.unwrapped_name(name) for name in group),
            )
            llm_config: Any = config.llm_config
            llm_config.tie_word_embeddings = False
            return skeleton_of(config, where)
    return skeleton


def _differ(
    group: tuple[str, ...],
    available: dict[str, TensorSource],
    replaced: Mapping[str, TensorSource],
) -> bool:
    """Whether the files hold several values for weights that the configuration calls one."""
    plain = [names.unwrapped_name(name) for name in group]
    former = next((replaced[name] for name in plain if name in replaced), None)
    if former is not None:
        for name in plain:
            available.setdefault(name, former)
    found = [
        available[spelling]
        for name in group
        for spelling in dict.fromkeys((name, names.unwrapped_name(name)))
        if spelling in available
    ]
    return any(not _equal(found[0], other) for other in found[1:])


def _equal(first: TensorSource, second: TensorSource) -> bool:
    """Whether two tensors hold the same values; reads until they differ."""
    if first.shape != second.shape:
        return False
    return all(
        first.read(start, stop).double().equal(second.read(start, stop).double())
        for start, stop in pieces(0, numel(first.shape))
    )


def tie_as_configured(model: InternVLChatModel) -> None:
    """Tie output to input embeddings where the language model does; construction skips it."""
    unwrapped_llm(model).tie_weights()


def unwrapped_llm(model: nn.Module) -> Any:
    """The transformers language model, without PEFT's wrapping."""
    llm: Any = model.language_model
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm
