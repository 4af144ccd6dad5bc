"""Which weights train: freezing, adapters, and the table that says so before step 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.lora_settings import saved_module
from internvl_chat.checkpoint.skeleton import unwrapped_llm
from internvl_chat.config import TrainableConfig
from internvl_chat.costs.parameters import full_numel
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel


def apply_freezing_and_lora(model: InternVLChatModel, trainable: TrainableConfig) -> None:
    """Decide for every parameter whether it trains.

    The adapters themselves are part of the model since :func:`build_model` (they are loaded with
    it, and partitioned under ZeRO-3), so an existing adapter is continued and never wrapped twice.

    Args:
        model: from :func:`build_model` with the same ``trainable``.
        trainable: what trains.

    Raises:
        ConfigError: the head is to train, but is tied to the token embeddings.
    """
    _set_trainable(model.parameters(), False)
    if not trainable.freeze_backbone:
        _set_trainable(model.vision_model.parameters(), True)
    if not trainable.freeze_mlp:
        _set_trainable(model.mlp1.parameters(), True)
    if not trainable.freeze_llm:
        _set_trainable(model.language_model.parameters(), True)
    if trainable.unfreeze_lm_head:
        _set_trainable(_lm_head(model).parameters(), True)
    if trainable.unfreeze_vit_layers:
        for layer in _vit_layers(model)[trainable.unfreeze_vit_layers :]:
            _set_trainable(layer.parameters(), True)
    if trainable.use_llm_lora:
        _set_trainable(_adapter(model.language_model), True)
    if trainable.use_backbone_lora:
        _set_trainable(_adapter(model.vision_model), True)
    if trainable.use_llm_lora or trainable.use_backbone_lora:
        _set_trainable(_adapter(model.mlp1), True)
        _set_trainable(_saved_whole(model, trainable), True)


def _set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(trainable)


def _adapter(tower: nn.Module) -> Iterator[nn.Parameter]:
    return (value for name, value in tower.named_parameters() if names.is_lora(f".{name}"))


def _saved_whole(model: InternVLChatModel, trainable: TrainableConfig) -> Iterator[nn.Parameter]:
    """What PEFT's ``modules_to_save`` names: the run's own, and those of an adapter that goes on,
    but for the projector of the latter, which has a flag of its own."""
    given = trainable.lora.modules_to_save
    own = [word for word in getattr(model, "adapter_modules", ()) if word != MLP]
    for name, parameter in model.named_parameters():
        if not names.is_lora(name) and saved_module(names.unwrapped_name(name), [*given, *own]):
            yield parameter


def _lm_head(model: InternVLChatModel) -> nn.Module:
    llm = unwrapped_llm(model)
    head = llm.get_output_embeddings()
    if head.weight is llm.get_input_embeddings().weight:
        raise ConfigError(
            "this LLM ties its head to the token embeddings",
            where="--unfreeze_lm_head",
            fix="Leave it out; training the head would train the embeddings too.",
        )
    return head


def _vit_layers(model: InternVLChatModel) -> nn.ModuleList:
    tower = model.vision_model
    if hasattr(tower, "get_base_model"):
        tower = tower.get_base_model()
    return tower.encoder.layers


MLP: Final = "mlp1"
ADAPTER: Final = "default"
"""The name that PEFT gives the one adapter of a model."""


@dataclass(frozen=True)
class TrainableRow:
    """One line of the table: a part of the model."""

    group: str
    total: int
    """Parameters, counted whole even where ZeRO-3 has cut them up."""
    trainable: int


def trainable_table(model: nn.Module) -> list[TrainableRow]:
    """Parameters and trainable parameters of each part, parts in the model's order."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        count = counts.setdefault(parameter_group(name), [0, 0])
        count[0] += full_numel(parameter)
        count[1] += full_numel(parameter) if parameter.requires_grad else 0
    return [TrainableRow(group, *count) for group, count in counts.items()]


def adapter_lines(model: nn.Module) -> list[str]:
    """What the adapters of each part are: rank, alpha, scale, dropout, layers; a line a kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        if not getattr(module, "lora_A", None):
            continue
        layer: Any = module
        rank, alpha, scale = (by[ADAPTER] for by in (layer.r, layer.lora_alpha, layer.scaling))
        dropout = getattr(layer.lora_dropout[ADAPTER], "p", 0.0)
        text = f"rank {rank}, alpha {alpha:g}, scale {scale:g}, dropout {dropout:g}"
        if getattr(layer, "lora_magnitude_vector", None):
            text += ", DoRA"
        plain = names.unwrapped_name(f"{name}.")[:-1]
        kinds.setdefault((parameter_group(f"{name}.lora_A."), text), []).append(plain)
    return [
        f"{group}: {text}, on {len(layers)} layers: {_ends(layers)}"
        for (group, text), layers in kinds.items()
    ]


def _ends(layers: list[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))


def parameter_group(name: str) -> str:
    """The part of the model that a parameter belongs to, as the table names it."""
    part = name.removeprefix("module.").split(".", 1)[0]
    if names.is_lora(name):
        return f"{part} LoRA"
    plain = names.unwrapped_name(name.removeprefix("module."))
    if plain.startswith("language_model.") and "embed_tokens." in plain:
        return "language_model embeddings"
    if plain.startswith("language_model.lm_head."):
        return "language_model head"
    return part
