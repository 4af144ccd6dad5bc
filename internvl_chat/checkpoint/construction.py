"""A model without values, and the memory of its weights made where the run computes.

Parameters are constructed on the meta device and get their memory on the device that is asked for;
then their values are read, a few megabytes at a time: a model that trains on a GPU is nowhere on
the host. All values come from the CPU (files, the generators of new weights, and buffers, which a
model's construction computes), so that they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

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


DtypeOf: TypeAlias = Callable[[nn.Module, Tensor], torch.dtype | None]
"""The dtype that a parameter is held in, by its module and itself; None: not decided here."""


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
    give_memory(model, device, lambda home, parameter: dtype)
    for name, target in parameters_and_buffers(model).items():
        write_tensor(target, tensors.pop(name))
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


def give_memory(model: InternVLChatModel, device: torch.device, dtype_of: DtypeOf) -> None:
    """Give each parameter memory, without values yet, and bring the buffers to them.

    For all at once, before a value is read: small objects that are made between large readings
    would keep the host's allocator from using the same memory for the next reading.

    Args:
        model: of :func:`construct_empty`; changed in place. Parameters without a dtype stay.
        device: that is to hold it.
        dtype_of: of a parameter.
    """
    for name, parameter in list(model.named_parameters()):
        path, _, own = name.rpartition(".")
        home = model.get_submodule(path)
        dtype = dtype_of(home, parameter)
        if dtype is not None:
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(home, own, nn.Parameter(values, parameter.requires_grad))
    tie_as_configured(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
