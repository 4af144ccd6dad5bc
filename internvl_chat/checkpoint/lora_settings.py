"""LoRA by PEFT's settings: what a checkpoint carries, what a run asks for, and where they disagree.

An adapter of the usual kind (alpha twice the rank, dropout 0.05, every linear layer of a tower) is
two ranks in ``config.json``, as in the original's checkpoints. Any other is one ``LoraConfig`` of
the whole model, kept as a mapping in ``InternVLChatConfig.lora`` while it trains and written as it
is into ``adapter_config.json``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.tensor_files import TensorSource, listed
from internvl_chat.config import LoraSettings, TrainableConfig, require
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.adapter import LORA_DROPOUT, LORA_VISION_TARGETS
from internvl_chat.model.suggestions import suggest

if TYPE_CHECKING:
    from internvl_chat.checkpoint.skeleton import Skeleton
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

logger = logging.getLogger(__name__)

ALL_LINEAR: Final = "all-linear"
_NAME = re.compile(r"[\w.\-]+")
_MERGE_FIRST: Final = "Merge it (internvl-chat merge-lora) and train a new adapter on the result"
_MERGE_BY_PEFT: Final = "Merge it with PEFT's merge_and_unload"
_CONTINUED: Final = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora"),
    *("use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
)
"""Settings of ``LoraConfig`` that say where an adapter sits and what it computes."""
_NOT_CONTINUED: Final = {
    "fan_in_fan_out": "layers that are stored transposed",
    "lora_bias": "biases of its own",
    "target_parameters": "an adapter on parameters that are no layer's",
    "trainable_token_indices": "an adapter on single tokens",
}


@dataclass(frozen=True, kw_only=True)
class CarriedLora:
    """The adapter that a checkpoint brings."""

    settings: Mapping[str, Any]
    """For ``LoraConfig``, of the whole model."""
    ranks: Mapping[str, int]
    """Layer -> rank; empty where the checkpoint has no adapter."""
    is_usual: bool
    """The two ranks of ``config.json`` say all of it."""

    def ranks_in(self, prefix: str) -> list[int]:
        """The ranks of its layers in a part of the model, each once."""
        return sorted({rank for layer, rank in self.ranks.items() if layer.startswith(prefix)})

    def alphas(self) -> list[float]:
        """Of its layers, each once."""
        from peft.utils.other import get_pattern_key

        patterns: Mapping[str, float] = self.settings.get("alpha_pattern") or {}
        general = self.settings["lora_alpha"]
        return sorted(
            {patterns.get(get_pattern_key([*patterns], one), general) for one in self.ranks}
        )

    def layers_in(self, prefix: str) -> set[str]:
        """Names of its layers in a part of the model."""
        return {layer for layer in self.ranks if layer.startswith(prefix)}


# ---- what a checkpoint carries ------------------------------------------------------------------


def carried_lora(
    config: InternVLChatConfig,
    adapter: Mapping[str, TensorSource],
    adapter_config: Mapping[str, Any],
    bare: Skeleton,
    where: str,
) -> CarriedLora:
    """The adapter of a checkpoint: in files of its own, or inside.

    Args:
        config: of the checkpoint, as its files have it.
        adapter: weights of an adapter-only checkpoint, by parameter name; empty for others.
        adapter_config: contents of ``adapter_config.json``.
        bare: of the model without adapters.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: an adapter of a kind that training does not continue.
    """
    if adapter:
        if any(names.is_unmerged(name) for name in adapter):
            raise CheckpointError(
                "its adapter sits on the token embeddings, which training does not continue",
                where=where,
                fix=f"{_MERGE_BY_PEFT} and train a new adapter on the result.",
            )
        settings = continued_settings(adapter_config, where)
        ranks = {
            name.partition(".lora_A.")[0]: tensor.shape[0]
            for name, tensor in adapter.items()
            if ".lora_A." in name
        }
        return CarriedLora(
            settings=settings, ranks=ranks, is_usual=_is_usual(settings, ranks, bare)
        )
    if config.lora is not None:
        settings = continued_settings(config.lora, where)
        return CarriedLora(
            settings=settings, ranks=_ranks_by_settings(settings, bare), is_usual=False
        )
    ranks = {
        layer: rank
        for prefix, rank in (
            (names.LLM_PREFIX, config.use_llm_lora),
            (names.VISION_PREFIX, config.use_backbone_lora),
        )
        for layer in (usual_layers(bare, prefix) if rank else ())
    }
    settings = _whole_model_settings(
        config.use_llm_lora, config.use_backbone_lora, usual_layers(bare, names.LLM_PREFIX), bare
    )
    return CarriedLora(settings=settings, ranks=ranks, is_usual=True)


def continued_settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of an ``adapter_config.json`` makes the same layers again, PEFT's defaults filled in.

    Raises:
        CheckpointError: it has something beside the layers, which training would lose.
    """
    from peft import LoraConfig

    told = next((what for name, what in _NOT_CONTINUED.items() if values.get(name)), None)
    if values.get("bias", "none") != "none":
        told = "biases that were trained"
    if told is not None:
        raise CheckpointError(
            f"its adapter has {told}, which training does not continue",
            where=where,
            fix=f"{_MERGE_BY_PEFT} and train a new adapter on the result.",
        )
    general = LoraConfig()
    found = {name: values.get(name, getattr(general, name)) for name in _CONTINUED}
    # By identity: 0 is a layer, and a dropout.
    return {
        name: value
        for name, value in found.items()
        if not (value is None or value is False or value == {})
    }


def usual_layers(bare: Skeleton, prefix: str) -> set[str]:
    """The layers of a tower that get an adapter where nobody chooses."""
    own = {name for name in bare.linear if name.startswith(prefix)}
    if prefix == names.VISION_PREFIX:
        ends = tuple(f".{target}" for target in LORA_VISION_TARGETS)
        return {name for name in own if name.endswith(ends)}
    return own


def _is_usual(settings: Mapping[str, Any], ranks: Mapping[str, int], bare: Skeleton) -> bool:
    if settings.get("use_rslora") or settings.get("use_dora"):
        return False
    if settings.get("lora_dropout", 0.0) != LORA_DROPOUT:
        return False
    carried = CarriedLora(settings=settings, ranks=ranks, is_usual=False)
    for prefix in (names.LLM_PREFIX, names.VISION_PREFIX):
        layers, found = carried.layers_in(prefix), carried.ranks_in(prefix)
        if layers and (len(found) > 1 or layers != usual_layers(bare, prefix)):
            return False
    if any(not layer.startswith((names.LLM_PREFIX, names.VISION_PREFIX)) for layer in ranks):
        return False
    return all(
        alpha == 2 * rank for layer, rank in ranks.items() for alpha in _alpha_of(settings, layer)
    )


def _alpha_of(settings: Mapping[str, Any], layer: str) -> list[float]:
    return CarriedLora(settings=settings, ranks={layer: 0}, is_usual=False).alphas()


def adapted_layers(config: InternVLChatConfig, bare: Skeleton) -> set[str]:
    """The layers that get an adapter by a configuration."""
    if config.lora is not None:
        return set(_ranks_by_settings(config.lora, bare))
    towers = (
        (names.LLM_PREFIX, config.use_llm_lora),
        (names.VISION_PREFIX, config.use_backbone_lora),
    )
    return {layer for prefix, rank in towers if rank for layer in usual_layers(bare, prefix)}


def _ranks_by_settings(settings: Mapping[str, Any], bare: Skeleton) -> dict[str, int]:
    """Layer -> rank, by the same functions that PEFT puts the layers in with."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    config = LoraConfig(**settings)
    patterns: Mapping[str, int] = config.rank_pattern or {}
    return {
        name: patterns.get(get_pattern_key([*patterns], name), config.r)
        for name in bare.linear
        if check_target_module_exists(config, name)
    }


# ---- what a run asks for ------------------------------------------------------------------------


def settle_lora(
    trainable: TrainableConfig,
    config: InternVLChatConfig,
    carried: CarriedLora,
    bare: Skeleton,
    where: str,
) -> None:
    """Write into the configuration which adapters the model of this run has.

    Args:
        trainable: what the run asks for.
        config: of the checkpoint; its ``lora`` and the two ranks are set.
        carried: the checkpoint's adapter.
        bare: of the model without adapters.
        where: the checkpoint, for messages.

    Raises:
        ConfigError: the run asks for another adapter than the checkpoint carries, or for layers
            that are not there.
    """
    asked = trainable.lora
    check_adapters(trainable, carried, where)
    ranks = (
        trainable.use_llm_lora or max(carried.ranks_in(names.LLM_PREFIX), default=0),
        trainable.use_backbone_lora or max(carried.ranks_in(names.VISION_PREFIX), default=0),
    )
    settings: dict[str, Any] | None = None
    if carried.ranks:
        require(_contradictions(asked, carried, bare, where))
        _tell_of_frozen_part(trainable, carried, where)
        if not carried.is_usual or asked.dropout not in (None, LORA_DROPOUT):
            _refuse_second_adapter(trainable, carried, where)
            settings = dict(carried.settings)
            if asked.dropout is not None:
                settings["lora_dropout"] = asked.dropout
    elif any(value is not None for value in _of_config(asked)) or asked.target_modules:
        layers = llm_targets(asked.target_modules, bare)
        settings = _whole_model_settings(*ranks, layers, bare, asked)
    config.lora = settings
    config.use_llm_lora, config.use_backbone_lora = (0, 0) if settings else ranks


def _tell_of_frozen_part(trainable: TrainableConfig, carried: CarriedLora, where: str) -> None:
    if not (trainable.use_llm_lora or trainable.use_backbone_lora):
        return
    for part, prefix, asked in _towers(trainable):
        ranks = carried.ranks_in(prefix)
        if ranks and not asked:
            tower = "LLM" if part == "llm" else "vision tower"
            logger.warning(
                "%s: its adapter on the %s stays as it is: --use_%s_lora %d trains it on",
                *(where, tower, part, ranks[-1]),
            )


def _of_config(asked: LoraSettings) -> tuple[object, ...]:
    return (asked.alpha, asked.dropout, asked.use_rslora or None, asked.use_dora or None)


def _refuse_second_adapter(trainable: TrainableConfig, carried: CarriedLora, where: str) -> None:
    """One ``LoraConfig`` holds for all of an adapter: a tower cannot join one of other settings."""
    for part, prefix, rank in _towers(trainable):
        if rank and not carried.ranks_in(prefix):
            raise ConfigError(
                f"{where} carries an adapter with settings of its own, and none on this tower",
                where=f"--use_{part}_lora",
                fix=f"Leave it out, or merge first: {_MERGE_FIRST.lower()}.",
            )


def _towers(trainable: TrainableConfig) -> Iterator[tuple[str, str, int]]:
    yield "llm", names.LLM_PREFIX, trainable.use_llm_lora
    yield "backbone", names.VISION_PREFIX, trainable.use_backbone_lora


def check_adapters(trainable: TrainableConfig, carried: CarriedLora, where: str) -> None:
    """The adapters that a checkpoint carries against the ranks and the freezing of a run.

    Raises:
        ConfigError: another rank, or the layers under an adapter are to be trained as well.
    """
    frozen = {"llm": trainable.freeze_llm, "backbone": trainable.freeze_backbone}
    for part, prefix, asked in _towers(trainable):
        found = carried.ranks_in(prefix)
        flag = f"--use_{part}_lora"
        if found and asked not in (0, *found):
            shown = " and ".join(map(str, found))
            raise ConfigError(
                f"{where} carries an adapter of rank {shown}, not {asked}",
                where=flag,
                fix=f"Give {flag} {found[-1]} to continue it, or merge it into the weights first.",
            )
        if found and not frozen[part]:
            raise ConfigError(
                "an adapter is trained on layers that are trained as well",
                where=flag,
                fix=f"Give --freeze_{part} True, or merge the adapter and train without {flag}.",
            )
    if carried.ranks_in(names.MLP_PREFIX) and not trainable.freeze_mlp:
        raise ConfigError(
            f"the adapter of {where} sits on the projector, which is trained as well",
            where="--freeze_mlp",
            fix="Give --freeze_mlp True, or merge the adapter first.",
        )


def _contradictions(
    asked: LoraSettings, carried: CarriedLora, bare: Skeleton, where: str
) -> Iterator[str]:
    """A sentence for each flag that says otherwise than the adapter that is continued."""
    settings = carried.settings
    alphas = carried.alphas()
    if asked.alpha is not None and alphas != [asked.alpha]:
        shown = " and ".join(f"{alpha:g}" for alpha in alphas)
        yield _told(f"--lora_alpha {asked.alpha:g}", f"alpha {shown}", where)
    for flag, value in (("use_rslora", asked.use_rslora), ("use_dora", asked.use_dora)):
        if value is not None and value != bool(settings.get(flag)):
            yield _told(f"--{flag} {value}", f"{flag} {bool(settings.get(flag))}", where)
    if asked.target_modules:
        own = carried.layers_in(names.LLM_PREFIX)
        if llm_targets(asked.target_modules, bare) != own:
            flag = f"--lora_target_modules {' '.join(asked.target_modules)}"
            yield _told(flag, f"an adapter on {_ends(own)}", where)


def _told(flag: str, own: str, where: str) -> str:
    return (
        f"{flag}: {where} carries {own}, which is what its weights were trained for. Leave the "
        f"flag out to continue it. {_MERGE_FIRST} to have another."
    )


def llm_targets(words: Collection[str], bare: Skeleton) -> set[str]:
    """The layers of the LLM that ``--lora_target_modules`` means.

    A name is the end of a layer's name, as PEFT compares them; a regular expression is compared
    with the whole name, in the chat model or in the LLM.

    Args:
        words: several names, one name or expression, ``all-linear``; none for all.
        bare: of the model without adapters.

    Raises:
        ConfigError: a word matches no layer, or is no regular expression.
    """
    layers = usual_layers(bare, names.LLM_PREFIX)
    if not words or tuple(words) == (ALL_LINEAR,):
        return layers
    chosen: set[str] = set()
    for word in words:
        found = _matching(word, layers)
        if not found:
            raise ConfigError(
                _no_such_layer(word, bare),
                where=f"--lora_target_modules {word}",
                fix=_targets_that_exist(word, layers),
            )
        chosen |= found
    return chosen


def _matching(word: str, layers: Iterable[str]) -> set[str]:
    if _NAME.fullmatch(word):
        return {name for name in layers if name == word or name.endswith(f".{word}")}
    try:
        pattern = re.compile(word)
    except re.error as err:
        raise ConfigError(
            f"is no name and no regular expression ({err})",
            where=f"--lora_target_modules {word}",
            fix="Give names of layers, as q_proj v_proj, or quote the expression.",
        ) from err
    return {
        name
        for name in layers
        if pattern.fullmatch(name) or pattern.fullmatch(name.removeprefix(names.LLM_PREFIX))
    }


def _no_such_layer(word: str, bare: Skeleton) -> str:
    if word == ALL_LINEAR:
        return "stands alone: it means every linear layer"
    others = [name for name in bare.modules if name == word or name.endswith(f".{word}")]
    if any(name.startswith(names.VISION_PREFIX) for name in others):
        return "is in the vision tower, whose adapter (--use_backbone_lora) sits on all its layers"
    if others:
        return f"is no linear layer of the LLM's blocks; {others[0]} trains by --modules_to_save"
    return "matches no linear layer of the LLM"


def _targets_that_exist(word: str, layers: Collection[str]) -> str:
    ends = sorted({name.rpartition(".")[2] for name in layers})
    hint = suggest(word, [*ends, ALL_LINEAR], write=str)
    known = (
        f"Its layers are {', '.join(ends)} ({ALL_LINEAR}: all of them), each in full as "
        f"{min(layers)}."
    )
    return f"{hint} {known}" if hint else known


def _ends(layers: Collection[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in layers})) or "no layer of the LLM"


def _whole_model_settings(
    llm_rank: int,
    vision_rank: int,
    llm_layers: set[str],
    bare: Skeleton,
    asked: LoraSettings | None = None,
) -> dict[str, Any]:
    """A ``LoraConfig`` of the whole chat model for adapters of these ranks.

    Args:
        llm_rank, vision_rank: 0 for none.
        llm_layers: that get one.
        bare: of the model without adapters.
        asked: flags; None for the usual settings.
    """
    rank = llm_rank or vision_rank
    alpha = None if asked is None else asked.alpha
    towers = [(names.LLM_PREFIX, llm_layers)] if llm_rank else []
    if vision_rank:
        towers.append((names.VISION_PREFIX, usual_layers(bare, names.VISION_PREFIX)))
    found: dict[str, Any] = {
        "r": rank,
        "lora_alpha": _whole(2 * rank if alpha is None else alpha),
        "lora_dropout": LORA_DROPOUT if asked is None or asked.dropout is None else asked.dropout,
        "target_modules": "|".join(_pattern(prefix, own, bare) for prefix, own in towers),
    }
    if llm_rank and vision_rank and llm_rank != vision_rank:
        tower = rf"{names.VISION_PREFIX[:-1]}\..*"
        found["rank_pattern"] = {tower: vision_rank}
        if alpha is None:
            found["alpha_pattern"] = {tower: 2 * vision_rank}
    for name, value in () if asked is None else _switches(asked):
        if value:
            found[name] = True
    return found


def _switches(asked: LoraSettings) -> tuple[tuple[str, bool | None], ...]:
    return ("use_rslora", asked.use_rslora), ("use_dora", asked.use_dora)


def _whole(number: float) -> float:
    """2.0 as 2, as PEFT writes it."""
    return int(number) if number == int(number) else number


def _pattern(prefix: str, layers: set[str], bare: Skeleton) -> str:
    """A regular expression that means exactly these layers of a tower, a short one if there is."""
    tower = re.escape(prefix[:-1])
    ends = sorted({name.rpartition(".")[2] for name in layers})
    short = rf"{tower}\..*\.(?:{'|'.join(map(re.escape, ends))})"
    if {name for name in bare.modules if re.fullmatch(short, name)} == layers:
        return short
    return "|".join(re.escape(name) for name in sorted(layers))


# ---- modules that train whole -------------------------------------------------------------------


def require_modules(
    modules: Collection[str], config: InternVLChatConfig, bare: Skeleton, adapted: Collection[str]
) -> None:
    """Look at ``--modules_to_save`` before a weight is read.

    Args:
        modules: as given.
        config: of the model.
        bare: of the model without adapters.
        adapted: layers that get an adapter.

    Raises:
        ConfigError: one does not exist, lies over or under an adapter, or is tied to another.
    """
    llm_config: Any = config.llm_config
    is_tied = bool(getattr(llm_config, "tie_word_embeddings", False))
    for word in modules:
        where = f"--modules_to_save {word}"
        found = modules_named(word, bare.modules)
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in bare.modules})
            known = [end for end in ends if not end.isdigit()]
            hint = suggest(word, known, write=str)
            raise ConfigError(
                "no module of the model has this name",
                where=where,
                fix=f"{hint} There are {', '.join(known)}.".strip(),
            )
        under = [name for name in adapted if any(_is_in(name, module) for module in found)]
        over = [module for module in found if any(_is_in(module, name) for name in adapted)]
        if under or over:
            raise ConfigError(
                f"the adapter sits on {listed(sorted(under or over), 3)}: a layer trains whole or "
                "with LoRA",
                where=where,
                fix="Choose other layers with --lora_target_modules, or leave the module out.",
            )
        tables = [name for name in bare.vocabulary if _is_of_module(name, found)]
        if is_tied and tables:
            raise ConfigError(
                "this LLM ties its head to the token embeddings, and PEFT's files would part them",
                where=where,
                fix="Leave it out, or train the LLM whole.",
            )


def modules_named(word: str, modules: Iterable[str]) -> list[str]:
    """Modules that one of PEFT's ``modules_to_save`` means: whose names end so."""
    return [name for name in modules if name.endswith(word)]


def saved_module(parameter: str, words: Iterable[str]) -> str | None:
    """Which of ``words`` has a parameter in a module of its own, if any.

    Args:
        parameter: name without PEFT's wrapping.
        words: PEFT's ``modules_to_save``.
    """
    parts = parameter.split(".")
    modules = [".".join(parts[:end]) for end in range(1, len(parts))]
    return next((word for word in words if modules_named(word, modules)), None)


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _is_of_module(parameter: str, modules: Iterable[str]) -> bool:
    return any(parameter.startswith(f"{module}.") for module in modules)
