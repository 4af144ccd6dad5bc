"""A model whose frozen weights are held in another dtype than those that train.

Without DeepSpeed what trains is its own master copy, in fp32, and autocast computes in bf16. What
is frozen needs no master: in bf16 it takes half the memory. Each weight is made in the dtype that
it keeps, so that the model is nowhere in fp32 as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from internvl_chat.checkpoint.construction import DtypeOf, construct_empty, give_memory
from internvl_chat.checkpoint.lora import apply_freezing_and_lora
from internvl_chat.checkpoint.partition import parameters_and_buffers, write_tensor
from internvl_chat.checkpoint.tensor_files import TensorSource
from internvl_chat.config import TrainableConfig

if TYPE_CHECKING:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel


def build_in_two_dtypes(
    config: InternVLChatConfig,
    trainable: TrainableConfig,
    tensors: dict[str, TensorSource],
    modules_to_save: tuple[str, ...],
    dtype: torch.dtype,
    frozen_dtype: torch.dtype,
    device: torch.device,
) -> InternVLChatModel:
    """Build a model with its weights in place.

    Args:
        config: of the model.
        trainable: what trains.
        tensors: by parameter name; emptied.
        modules_to_save: that train whole, or came whole with an adapter.
        dtype: of what trains.
        frozen_dtype: of what does not.
        device: that holds the model.
    """
    model = empty_model(config, trainable, modules_to_save, frozen_dtype)
    give_memory(model, device, dtypes_by_training(dtype, frozen_dtype))
    for name, target in parameters_and_buffers(model).items():
        write_tensor(target, tensors.pop(name))
    leave_casting_to_autocast(model)
    return model


def leave_casting_to_autocast(model: nn.Module) -> None:
    """Keep adapters from making fp32 of their input, of which autocast makes bf16 again.

    PEFT's own switch (``peft.helpers.disable_input_dtype_casting``). DoRA, which takes norms of
    weights in its input's dtype, is left alone.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and not module.lora_variant:
            module.cast_input_dtype_enabled = False


def empty_model(
    config: InternVLChatConfig,
    trainable: TrainableConfig,
    modules_to_save: tuple[str, ...],
    dtype: torch.dtype,
) -> InternVLChatModel:
    """A model without values that says what of it trains.

    Args:
        config: of the model.
        trainable: what trains.
        modules_to_save: as in :func:`build_in_two_dtypes`.
        dtype: of all its parameters.
    """
    model = construct_empty(config, dtype)
    model.adapter_modules = modules_to_save
    apply_freezing_and_lora(model, trainable)
    return model


def dtypes_by_training(dtype: torch.dtype, frozen_dtype: torch.dtype) -> DtypeOf:
    """The rule of what a parameter of :func:`empty_model` is held in.

    Args:
        dtype, frozen_dtype: of a parameter that trains or is of a layer norm, and of the others.
    """
    return lambda home, parameter: dtype if keeps_dtype(home, parameter) else frozen_dtype


def keeps_dtype(home: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter is held in the dtype of training.

    A frozen layer norm is: it computes in fp32 in any case, and a CPU has no kernel for one in bf16
    behind a part that trains in fp32.

    Args:
        home: module that has it.
        parameter: with its ``requires_grad`` decided.
    """
    return parameter.requires_grad or isinstance(home, nn.LayerNorm)


def round_frozen(model: nn.Module, frozen_dtype: torch.dtype) -> None:
    """Give a model that stands in one dtype the two, in place; for one on the meta device."""
    for home in model.modules():
        for parameter in home.parameters(recurse=False):
            if not keeps_dtype(home, parameter):
                parameter.data = parameter.data.to(frozen_dtype)
