"""A model without values, and the memory of each of its weights made where the run computes.

Parameters are constructed on the meta device and get their memory one by one, on the device that
is asked for, as their values are read: a model that trains on a GPU is nowhere on the host. All
values come from the CPU (files, the generators of new weights, and buffers, which a model's
construction computes), so that they are the same on every device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from internvl_chat.checkpoint.partition import (
    parameters_and_buffers,
    partitioned_construction,
    write_tensor,
)
from internvl_chat.checkpoint.skeleton import tie_as_configured
from internvl_chat.checkpoint.tensor_files import TensorSource

if TYPE_CHECKING:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel


def build_in_one_dtype(
    config: InternVLChatConfig,
    tensors: dict[str, TensorSource],
    dtype: torch.dtype,
    device: torch.device,
) -> InternVLChatModel:
    """Build a model with its weights in place.

    Args:
        config: of the model.
        tensors: by parameter name; emptied.
        dtype: of all its parameters.
        device: that holds it.
    """
    model = construct_empty(config, dtype)
    for name, target in parameters_and_buffers(model).items():
        fill(model, name, target, tensors.pop(name), dtype=dtype, device=device)
    complete(model, device)
    return model


def construct_empty(config: InternVLChatConfig, dtype: torch.dtype) -> InternVLChatModel:
    """A model whose parameters are on the meta device, and its buffers, in place, on the CPU.

    Args:
        config: of the model.
        dtype: of its parameters.
    """
    from accelerate import init_empty_weights
    from transformers.modeling_utils import local_torch_dtype

    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

    empty = init_empty_weights(include_buffers=False)
    with local_torch_dtype(dtype, "InternVLChatModel"), partitioned_construction(None), empty:
        model = InternVLChatModel(config)
    tie_as_configured(model)
    return model


def fill(
    model: nn.Module,
    name: str,
    target: Tensor,
    source: TensorSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give a tensor of :func:`construct_empty` its values.

    Args:
        model: changed in place.
        name: of the tensor in it.
        target: the tensor; a parameter without values, or a buffer, which stays where it is.
        source: of the same shape.
        dtype: of a parameter.
        device: of a parameter.
    """
    if not isinstance(target, nn.Parameter):
        write_tensor(target, source)
        return
    path, _, own = name.rpartition(".")
    values = torch.empty(target.shape, dtype=dtype, device=device)
    write_tensor(values, source)
    setattr(model.get_submodule(path), own, nn.Parameter(values, target.requires_grad))


def complete(model: InternVLChatModel, device: torch.device) -> None:
    """Tie what was filled once, and bring the buffers to the parameters.

    Args:
        model: with all of its parameters filled.
        device: that holds them.
    """
    tie_as_configured(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
