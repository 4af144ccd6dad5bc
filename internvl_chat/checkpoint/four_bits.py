"""QLoRA: a model whose language model is in 4 bits from the moment it is loaded.

nf4 with double quantisation and bf16 compute (https://arxiv.org/abs/2305.14314), by bitsandbytes.
Only linear layers of the language model are quantised: the vision tower, which does not survive it
(the guide, section BNB 4-bit Quantization), the projector, the embeddings, the norms and the head
stay in bf16, and what trains in the dtype of training. Every weight is read, quantised and let go
before the next one, so that the language model is nowhere as a whole in more than 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.construction import give_memory
from internvl_chat.checkpoint.lora_settings import saved_module
from internvl_chat.checkpoint.partition import parameters_and_buffers, write_tensor
from internvl_chat.checkpoint.starting_values import RowNorms
from internvl_chat.checkpoint.tensor_files import TensorSource, numel
from internvl_chat.checkpoint.two_dtypes import dtypes_by_training, empty_model
from internvl_chat.config import TrainableConfig

if TYPE_CHECKING:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

FROZEN_DTYPE = torch.bfloat16
"""Of what neither trains nor is quantised, and of the products with quantised weights."""


def build_in_four_bits(
    config: InternVLChatConfig,
    trainable: TrainableConfig,
    tensors: dict[str, TensorSource],
    modules_to_save: tuple[str, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> InternVLChatModel:
    """Build a model with the language model in 4 bits, its weights in place.

    Args:
        config: of the model.
        trainable: what trains.
        tensors: by parameter name; emptied.
        modules_to_save: that train whole, or came whole with an adapter: not quantised.
        dtype: of what trains.
        device: that quantises, and holds the model.
    """
    model = empty_model(config, trainable, modules_to_save, FROZEN_DTYPE)
    for name, layer in list(quantised_layers(model, modules_to_save)):
        model.set_submodule(name, _empty_layer(layer))
    by_training = dtypes_by_training(dtype, FROZEN_DTYPE)
    give_memory(
        model,
        device,
        lambda home, own: None if _is_quantised(home, own) else by_training(home, own),
    )
    late: dict[str, RowNorms] = {}
    for name, target in parameters_and_buffers(model).items():
        source = tensors.pop(name)
        home = model.get_submodule(name.rpartition(".")[0])
        if isinstance(source, RowNorms):
            late[name] = source  # of layers as they come out of 4 bits
        elif _is_quantised(home, target):
            _quantise(home, source, device)
        else:
            write_tensor(target, source)
    for name in late:
        _write_magnitude(model, name)
    return model


def quantised_layers(
    model: InternVLChatModel, modules_to_save: tuple[str, ...]
) -> Iterator[tuple[str, nn.Linear]]:
    """Name and layer of what is in 4 bits."""
    head = model.get_output_embeddings()
    kept = set() if head is None else {id(module) for module in head.modules()}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or id(module) in kept or names.is_lora(f"{name}."):
            continue
        plain = names.unwrapped_name(f"{name}.weight")
        if plain.startswith(names.LLM_PREFIX) and not saved_module(plain, modules_to_save):
            yield name, module


def _empty_layer(layer: nn.Linear) -> nn.Module:
    """A 4-bit layer of the same shape, without values."""
    from bitsandbytes.nn import Linear4bit

    new = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=FROZEN_DTYPE,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    ).to(FROZEN_DTYPE)
    # On some CPUs bitsandbytes packs weights anew when it evaluates, for a product that has no
    # gradient: training would go on after it without one.
    new.support_avx512bf16_for_cpu = False
    return new.requires_grad_(False)


def _is_quantised(home: nn.Module, parameter: torch.Tensor) -> bool:
    return is_four_bit_layer(home) and parameter is home.weight


def _quantise(layer: Any, source: TensorSource, device: torch.device) -> None:
    from bitsandbytes.nn import Params4bit

    values = source.read(0, numel(source.shape)).to(FROZEN_DTYPE).view(source.shape)
    weight: Any = Params4bit(
        values, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
    )
    layer.weight = weight.to(device)


@torch.no_grad()
def _write_magnitude(model: nn.Module, name: str) -> None:
    """DoRA starts as the identity of the layer that it sits on, which is the quantised one."""
    from peft.utils.integrations import dequantize_module_weight

    path = name.partition(f"{names.MAGNITUDE}.")[0]
    layer: Any = model.get_submodule(path)
    norms = dequantize_module_weight(layer.get_base_layer()).float().norm(dim=1)
    model.get_parameter(name).copy_(norms)


def is_four_bit_layer(module: nn.Module) -> bool:
    """Whether a layer's weight is kept in 4 bits."""
    return type(module).__name__ == "Linear4bit"


def four_bit_line(model: nn.Module) -> str | None:
    """What the quantised layers take, for the log; None where there are none."""
    layers: list[Any] = [module for module in model.modules() if is_four_bit_layer(module)]
    if not layers:
        return None
    taken = sum(layer.weight.nbytes + _state_bytes(layer.weight.quant_state) for layer in layers)
    whole = sum(numel(layer.weight.quant_state.shape) for layer in layers) * FROZEN_DTYPE.itemsize
    return (
        f"language_model in 4 bits (nf4, double quantisation, bf16 compute): {len(layers)} linear "
        f"layers in {taken / 2**20:,.1f} MiB, {whole / 2**20:,.1f} MiB in bf16; all that is frozen "
        "besides in bf16"
    )


def _state_bytes(state: Any) -> int:
    """Of the scales of a quantised weight, which are quantised themselves."""
    own = state.absmax.nbytes + state.code.nbytes
    return own + (_state_bytes(state.state2) if state.nested else 0)
