"""Learning rates by part of the model, and by layer of the vision tower.

``--vision_lr``, ``--mlp_lr`` and ``--llm_lr`` replace ``--learning_rate`` in their part;
``--vit_layer_decay_rate`` lowers the vision tower's from layer to layer, as the original does it
(``VIT_LAYER_DECAY_RATE`` in ``internvl_chat/internvl/train/trainer_monkey_patch.py`` of
https://github.com/OpenGVLab/InternVL) and BEiT before it (``LayerDecayValueAssigner`` in
https://github.com/microsoft/unilm/blob/master/beit/optim_factory.py). The parameter groups of the
optimizer, which split matrices from the rest for the sake of weight decay, are split further; one
schedule goes over all of them. Without these options the optimizer is as transformers makes it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from internvl_chat.checkpoint.lora import parameter_group
from internvl_chat.checkpoint.names import LLM_PREFIX, MLP_PREFIX, VISION_PREFIX
from internvl_chat.config import TrainableConfig
from internvl_chat.costs.parameters import full_shape

PARTS: Final = {"vision": VISION_PREFIX, "mlp": MLP_PREFIX, "llm": LLM_PREFIX}
"""Part -> what its parameters' names begin with."""
FLAGS: Final = {part: f"{part}_lr" for part in PARTS}
"""Part -> the option with its rate."""
DECAY: Final = "vit_layer_decay_rate"
NAMES: Final = "param_names"
"""Key of a parameter group with the names of its parameters, as torch has it."""

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_TOLD: Final = {
    "vision": ("the vision tower", "--freeze_backbone"),
    "mlp": ("the projector", "--freeze_mlp"),
    "llm": ("the LLM", "--freeze_llm"),
}
_TRAINS: Final = {
    "vision": {"backbone", "vit_layers", "backbone_lora"},
    "mlp": {"mlp"},
    "llm": {"llm", "lm_head", "llm_lora"},
}
"""Part -> what of :attr:`TrainableConfig.parts` lies in it."""


def part_of(name: str) -> str:
    """The part that a parameter of the chat model belongs to.

    Raises:
        KeyError: to none.
    """
    plain = name.removeprefix("module.")
    for part, prefix in PARTS.items():
        if plain.startswith(prefix):
            return part
    raise KeyError(name)


@dataclass(frozen=True, kw_only=True)
class PartRates:
    """The learning rate of every parameter, before the schedule."""

    base: Mapping[str, float]
    """Part -> its rate."""
    decay: float
    """Of the vision tower, from a layer to the one before it; 1 for none."""
    num_layers: int
    """Of the vision tower."""

    def group_of(self, name: str) -> str:
        """The name of the group of a parameter: its part, for the vision tower with its layer."""
        part = part_of(name)
        if part != "vision" or self.decay == 1:
            return part
        found = _LAYER.search(name)
        return "vision embeddings" if found is None else f"vision layer {found[1]}"

    def rate_of(self, name: str) -> float:
        """The rate of a parameter.

        Layer i of n (from 0) has ``base * decay**(n - i)``, so that the last one has one power of
        it; the embeddings, below the first, have ``base * decay**(n + 1)``.
        """
        part = part_of(name)
        if part != "vision" or self.decay == 1:
            return self.base[part]
        found = _LAYER.search(name)
        depth = self.num_layers + 1 if found is None else self.num_layers - int(found[1])
        return self.base[part] * self.decay**depth


def is_by_part(arguments: Mapping[str, Any]) -> bool:
    """Whether the arguments ask for more than one rate, or for one by its part.

    Args:
        arguments: of a run by name; those that an earlier version did not know may be missing.
    """
    given = any(arguments.get(flag) is not None for flag in FLAGS.values())
    return given or arguments.get(DECAY, 1) != 1


def grouping(arguments: Mapping[str, Any]) -> str:
    """How the parameters are grouped, in words: the same for two runs of the same grouping."""
    if not is_by_part(arguments):
        return "one learning rate"
    return "rates by part" + (" and layer" if arguments.get(DECAY, 1) != 1 else "")


def part_rates(arguments: Mapping[str, Any], num_layers: int) -> PartRates | None:
    """The rates that the arguments ask for; None for one rate over all.

    Args:
        arguments: of the run by name.
        num_layers: of the vision tower.
    """
    return asked_rates(arguments, num_layers) if is_by_part(arguments) else None


def asked_rates(arguments: Mapping[str, Any], num_layers: int) -> PartRates:
    """As :func:`part_rates`, also where all parts have one rate."""
    given = {part: arguments.get(flag) for part, flag in FLAGS.items()}
    own = arguments["learning_rate"]
    return PartRates(
        base={part: own if rate is None else rate for part, rate in given.items()},
        decay=arguments.get(DECAY, 1.0),
        num_layers=num_layers,
    )


def num_vision_layers(model: Any) -> int:
    """Of an InternVLChatModel."""
    return int(model.config.vision_config.num_hidden_layers)


# ---- what is wrong ------------------------------------------------------------------------------


def rate_problems(
    arguments: Mapping[str, Any], trainable: TrainableConfig, *, stored_whole: Collection[str] = ()
) -> Iterator[str]:
    """A sentence for a rate of what does not train, before the model is there.

    Args:
        arguments: of the run by name.
        trainable: what trains.
        stored_whole: PEFT's ``modules_to_save``, the run's and its checkpoint's. Where there are
            any, which parts they lie in is left to :func:`unused_rates`.
    """
    has_lora = trainable.use_llm_lora or trainable.use_backbone_lora
    if not (has_lora and stored_whole):
        yield from _frozen(arguments, {p for p in PARTS if _TRAINS[p] & trainable.parts})


def unused_rates(arguments: Mapping[str, Any], trained: Iterable[str]) -> Iterator[str]:
    """The same, once the model is there.

    Args:
        arguments: of the run by name.
        trained: names of the parameters that train.
    """
    yield from _frozen(arguments, {part_of(name) for name in trained})


def _frozen(arguments: Mapping[str, Any], training: Collection[str]) -> Iterator[str]:
    told = {flag: part for part, flag in FLAGS.items() if arguments.get(flag) is not None}
    if arguments.get(DECAY, 1) != 1:
        told[DECAY] = "vision"
    for flag, part in told.items():
        if part not in training:
            what, freeze = _TOLD[part]
            yield (
                f"--{flag} {arguments[flag]:g}: {what} is frozen ({freeze} True), nothing would "
                f"learn at that rate. Drop --{flag} or {freeze}."
            )


def idle_parts(arguments: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each part that is held in place by a rate of 0."""
    for part, flag in FLAGS.items():
        if arguments.get(flag) == 0:
            what, freeze = _TOLD[part]
            yield (
                f"--{flag} 0: {what} stays as it is, and its gradients are computed all the same; "
                f"{freeze} True saves time and memory"
            )


# ---- the optimizer's groups ---------------------------------------------------------------------


def split_groups(
    optimizer: Any, named: Iterable[tuple[str, nn.Parameter]], rates: PartRates
) -> None:
    """Split the groups of a new optimizer so that each has one rate, in the parameters' order.

    Whatever else the groups say (weight decay, a projection's rank) goes on in their pieces.

    Args:
        optimizer: torch's or of its kind, which has made no step; changed in place.
        named: the model's parameters.
        rates: of the run.
    """
    names = {id(parameter): name for name, parameter in named}
    pieces: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_rate: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            by_rate.setdefault(rates.group_of(name), []).append((name, parameter))
        for members in by_rate.values():
            rate = rates.rate_of(members[0][0])
            pieces.append({**group, "params": members, "lr": rate})
    optimizer.param_groups.clear()
    for piece in pieces:
        optimizer.add_param_group(piece)


def names_by_group(optimizer: Any, named: Iterable[tuple[str, nn.Parameter]]) -> list[list[str]]:
    """The names of the parameters of each group."""
    names = {id(parameter): name for name, parameter in named}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def has_weight_decay(parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices: no norm, bias or layer scale, whatever it is called."""
    return len(full_shape(parameter)) > 1


def usual_groups(named: Iterable[tuple[str, nn.Parameter]]) -> list[list[str]]:
    """Names of what trains as transformers groups it: with weight decay, and without."""
    decayed: list[str] = []
    others: list[str] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (decayed if has_weight_decay(parameter) else others).append(name)
    return [decayed, others]


def saved_groups(
    saved: Mapping[str, Any], named: Iterable[tuple[str, nn.Parameter]]
) -> list[list[str]] | None:
    """Names of the parameters of an optimizer's groups as a checkpoint has them.

    Args:
        saved: its ``state_dict()``.
        named: the model's parameters.

    Returns:
        None where it does not say, and they are not the usual ones.
    """
    groups = saved["param_groups"]
    if all(NAMES in group for group in groups):
        return [list(group[NAMES]) for group in groups]
    usual = usual_groups(named)
    sizes = [len(group["params"]) for group in groups]
    return usual if sizes == [len(names) for names in usual] else None


def regrouped(
    saved: Mapping[str, Any], before: Sequence[Sequence[str]], now: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """An optimizer's state in the groups of another run.

    Args:
        saved: an optimizer's ``state_dict()``.
        before: names of the parameters of its groups.
        now: names of the parameters of the groups that are wanted; the same ones in all.

    Returns:
        The same with its parameters numbered and grouped anew. A new group has the settings of
        the former one of its first parameter, the learning rate among them.

    Raises:
        KeyError: a parameter that is not in ``saved``.
    """
    numbers: dict[str, int] = {}
    group_of: dict[str, Mapping[str, Any]] = {}
    for names, group in zip(before, saved["param_groups"], strict=True):
        for name, number in zip(names, group["params"], strict=True):
            numbers[name], group_of[name] = number, group
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    first = 0
    for place, names in enumerate(now):
        for number, name in enumerate(names, first):
            if numbers[name] in saved["state"]:
                state[number] = saved["state"][numbers[name]]
        # The usual groups may be empty, as that of a LoRA run without biases.
        former = group_of[names[0]] if names else saved["param_groups"][place]
        settings = {key: value for key, value in former.items() if key != NAMES}
        groups.append({**settings, "params": list(range(first, first + len(names)))})
        first += len(names)
    return {**saved, "state": state, "param_groups": groups}


# ---- showing them -------------------------------------------------------------------------------


def rates_by_row(model: nn.Module, rates: PartRates) -> dict[str, tuple[float, float]]:
    """The lowest and highest rate of what trains, by row of the table of trainable parameters."""
    found: dict[str, list[float]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(parameter_group(name), []).append(rates.rate_of(name))
    return {row: (min(values), max(values)) for row, values in found.items()}


class RateMeter:
    """The rates of a run by part, out of its parameter groups.

    Args:
        names: of the parameters of each group.
        rates: of the run.
        learning_rate: ``--learning_rate``.
    """

    def __init__(
        self, names: Sequence[Sequence[str]], rates: PartRates, learning_rate: float
    ) -> None:
        self._parts = [part_of(group[0]) if group else "" for group in names]
        self._base = [rates.rate_of(group[0]) if group else 0.0 for group in names]
        self._learning_rate = learning_rate

    def read(self, current: Sequence[float]) -> dict[str, float]:
        """The figures to log.

        Args:
            current: the rate of each group.

        Returns:
            ``learning_rate``, that which ``--learning_rate`` has come to by the schedule, and the
            highest rate of each part that trains, as ``learning_rate/vision`` and so on.
        """
        found: dict[str, float] = {}
        for part, rate in zip(self._parts, current, strict=True):
            if part:
                key = f"learning_rate/{part}"
                found[key] = max(rate, found.get(key, rate))
        pairs = [(base, rate) for base, rate in zip(self._base, current, strict=True) if base]
        own = next((rate for base, rate in pairs if base == self._learning_rate), None)
        if own is None and pairs:
            own = self._learning_rate * pairs[0][1] / pairs[0][0]
        return {"learning_rate": own or 0.0, **found}
