"""From files to a model: inspect first, then build, with every name and shape checked.

``inspect_checkpoint`` reads configurations and weight headers only, so that what does not fit is
known before a weight is read. ``build_model`` then constructs the model in its final shape and
fills it tensor by tensor, on the device that computes; under ZeRO-3 it is partitioned while it is
constructed, and each rank reads from the files just the runs that it keeps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.adapters import require_adapter_fits
from internvl_chat.checkpoint.construction import build_in_one_dtype
from internvl_chat.checkpoint.four_bits import build_in_four_bits
from internvl_chat.checkpoint.lora_settings import (
    adapted_layers,
    carried_lora,
    require_modules,
    settle_lora,
)
from internvl_chat.checkpoint.partition import (
    deepspeed_config_if_zero3,
    parameters_and_buffers,
    partitioned_construction,
    write_tensor,
)
from internvl_chat.checkpoint.resize import GrownRows, ResizedPositions
from internvl_chat.checkpoint.skeleton import (
    Skeleton,
    settled_skeleton,
    skeleton_of,
    tie_as_configured,
)
from internvl_chat.checkpoint.sources import (
    Sources,
    find_sources,
    is_bare_adapter,
    is_quantised,
    refuse_quantised,
)
from internvl_chat.checkpoint.starting_values import new_adapter_tensor, new_tensor
from internvl_chat.checkpoint.tensor_files import TensorSource
from internvl_chat.checkpoint.two_dtypes import build_in_two_dtypes
from internvl_chat.config import BuildConfig, SourceConfig, TrainableConfig, require
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.configuration_internvl_chat import image_size_unit
from internvl_chat.model.constants import IMG_CONTEXT_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

TRAINED_IN_4BIT = "trained_in_4bit"
"""Key of ``config.json`` beside an adapter whose base was quantised in training."""
_CPU = torch.device("cpu")
_POSITION_EMBEDDING = "vision_model.embeddings.position_embedding"


@dataclass(kw_only=True)
class LoadPlan:
    """A model's final configuration and, for each of its tensors, where the values come from."""

    config: InternVLChatConfig
    tensors: dict[str, TensorSource]
    """By parameter name; :func:`build_model` empties it."""
    where: str
    adapter_base: str | None
    """Whole checkpoint that an adapter-only save may refer to; ``None`` where the rest of the
    model differs from every checkpoint on disk."""
    no_base_reason: str
    adapter_modules: tuple[str, ...]
    """PEFT's ``modules_to_save``: what an adapter-only checkpoint stored whole, for it differs from
    its base, and what the run adds."""


def inspect_checkpoint(
    build: BuildConfig, tokenizer: Sized, *, num_new_tokens: int = 0
) -> LoadPlan:
    """Compare configuration, names and shapes; reads no weight and needs no memory for one.

    Args:
        build: what to build.
        tokenizer: with the special tokens added; only its length matters.
        num_new_tokens: how many of its last tokens were just added.

    Raises:
        CheckpointError: a file is missing or broken, or names and shapes do not fit.
        ConfigError: what is asked for does not fit the checkpoint.
    """
    sources = find_sources(build.source)
    config = sources.config
    refuse_quantised(config, sources.where)
    if sources.adapter:
        require_adapter_fits(
            sources.adapter, sources.tensors, sources.adapter_config, sources.where
        )
    llm_config: Any = config.llm_config
    native_rows, native_size = llm_config.vocab_size, config.vision_config.image_size
    new_adapters = settle_config(build, sources, num_tokens=_rows_for(tokenizer))
    available = sources.tensors | sources.adapter
    skeleton = settled_skeleton(config, available, sources.replaced, sources.where)

    if sources.adapter:
        _require_own_layers(sources, skeleton)
    match = names.match_names(skeleton.aliases, available)
    tensors = dict(match.sources)
    tensors |= _new_tensors(match, skeleton, new_adapters, sources.new_prefixes, build.seed)
    grow_vocabulary(tensors, skeleton, native_rows, len(tokenizer), num_new_tokens)
    if config.vision_config.image_size != native_size:
        for name in tensors:
            if names.unwrapped_name(name) == _POSITION_EMBEDDING:
                tensors[name] = ResizedPositions(tensors[name], skeleton.shapes[name][1] - 1)
    names.require_fit(
        sources.where,
        missing=[name for name in match.missing if name not in tensors],
        surplus=match.surplus,
        shapes={name: (tensor.shape, skeleton.shapes[name]) for name, tensor in tensors.items()},
    )
    grown = llm_config.vocab_size != native_rows or num_new_tokens > 0
    base, reason = _adapter_base(sources, grown, native_size)
    if build.load_in_4bit:
        _require_adapter_alone(base, reason)
    own_modules = sources.adapter_modules
    return LoadPlan(
        config=config,
        tensors=tensors,
        where=sources.where,
        adapter_base=base,
        no_base_reason=reason,
        adapter_modules=(*dict.fromkeys((*own_modules, *build.trainable.lora.modules_to_save)),),
    )


def settle_config(build: BuildConfig, sources: Sources, *, num_tokens: int) -> tuple[str, ...]:
    """Write what the run decides into the configuration that the files brought.

    Args:
        build: what to build.
        sources: of the model; of their weights, only adapters are looked at.
        num_tokens: rows that the tokenizer's ids need.

    Returns:
        Prefixes of the parts whose adapter is new.

    Raises:
        CheckpointError, ConfigError: the checkpoint does not fit what the run asks for.
    """
    new_adapters = _settle_adapters(build.trainable, sources)
    _apply(build, sources.config, num_tokens=num_tokens)
    return new_adapters


def _new_tensors(
    match: names.Match,
    skeleton: Skeleton,
    new_adapters: tuple[str, ...],
    new_parts: tuple[str, ...],
    seed: int,
) -> dict[str, TensorSource]:
    """Starting values of what no file holds on purpose.

    Args:
        match: what the files hold, and what is missing.
        skeleton: of the model.
        new_adapters, new_parts: prefixes of the parts whose adapter, or all of which, is new.
        seed: of the run.
    """
    found: dict[str, TensorSource] = {}
    for name in match.missing:
        if names.is_lora(name) and name.startswith(new_adapters or ("\0",)):
            found[name] = new_adapter_tensor(name, skeleton.shapes, match.sources, seed)
        elif name.startswith(new_parts or ("\0",)) and not names.is_lora(name):
            found[name] = new_tensor(name, skeleton.shapes, seed)
    return found


def _require_adapter_alone(base: str | None, reason: str) -> None:
    """Weights of 4 bits are not written: a run with them saves an adapter, or nothing.

    Raises:
        ConfigError: the rest of the model is no checkpoint on disk.
    """
    if base is None:
        raise ConfigError(
            f"saves an adapter, which names the checkpoint under it, and there is none: {reason}",
            where="--load_in_4bit",
            fix="Start from a whole checkpoint without LoRA, at its own image size; one step "
            "without --load_in_4bit, or merge-lora, leaves such a one.",
        )


def _settle_adapters(trainable: TrainableConfig, sources: Sources) -> tuple[str, ...]:
    """Decide which adapters the model has; the configuration says so afterwards.

    Returns:
        Prefixes of the parts whose adapter is new.

    Raises:
        CheckpointError, ConfigError: the checkpoint's adapter does not fit what the run asks for.
    """
    config = sources.config
    has_adapter = sources.adapter or config.lora or config.use_llm_lora or config.use_backbone_lora
    if not has_adapter and not trainable.lora.given():  # nothing to look up
        config.use_llm_lora = trainable.use_llm_lora
        config.use_backbone_lora = trainable.use_backbone_lora
        return (names.LLM_PREFIX, names.VISION_PREFIX)
    plain = copy.deepcopy(config)
    plain.use_llm_lora, plain.use_backbone_lora, plain.lora = 0, 0, None
    bare = skeleton_of(plain, sources.where)
    carried = carried_lora(config, sources.adapter, sources.adapter_config, bare, sources.where)
    settle_lora(trainable, config, carried, bare, sources.where)
    require_modules(trainable.lora.modules_to_save, config, bare, adapted_layers(config, bare))
    towers = (names.LLM_PREFIX, names.VISION_PREFIX)
    return tuple(prefix for prefix in towers if not carried.ranks_in(prefix))


def _rows_for(tokenizer: Sized) -> int:
    """Rows that a tokenizer's ids need: more than tokens where it leaves some ids out."""
    if not hasattr(tokenizer, "get_vocab"):
        return len(tokenizer)
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def _require_own_layers(sources: Sources, skeleton: Skeleton) -> None:
    """An adapter's settings and its weights must be about the same layers.

    Raises:
        CheckpointError: its settings name layers that it has no weights of, or the other way round.
    """
    own = {name for name in map(names.unwrapped_name, skeleton.shapes) if names.is_lora(name)}
    theirs = set(map(names.unwrapped_name, sources.adapter))
    new = [
        part
        for part in (names.LLM_PREFIX, names.VISION_PREFIX)
        if not any(name.startswith(part) for name in theirs)
    ]
    own = {name for name in own if not name.startswith(tuple(new) or ("\0",))}
    if own != theirs:
        lacking, surplus = sorted(own - theirs), sorted(theirs - own)
        told = [
            f"{len(some)} {what} it, {some[0]} for one"
            for some, what in ((lacking, "are not in"), (surplus, "are only in"))
            if some
        ]
        raise CheckpointError(
            "its adapter sits on other layers than its adapter_config.json says: of their weights "
            f"{' and '.join(told)}",
            where=sources.where,
            fix="Copy it again if it should be complete; else merge it (internvl-chat merge-lora) "
            "and train a new adapter on the result.",
        )


def grow_vocabulary(
    tensors: dict[str, TensorSource],
    skeleton: Skeleton,
    native_rows: int,
    num_tokens: int,
    num_new_tokens: int,
) -> None:
    """Give the vocabulary's tensors rows for new tokens, where they have none yet.

    Args:
        tensors: by parameter name; changed in place.
        skeleton: of the model with its final vocabulary.
        native_rows: of the vocabulary's tensors in the files.
        num_tokens: of the tokenizer, new ones included.
        num_new_tokens: how many of its last tokens are new.
    """
    for name in skeleton.vocabulary.intersection(tensors):
        num_rows, *width = skeleton.shapes[name]
        grows = num_rows != native_rows or num_new_tokens > 0
        if grows and tensors[name].shape == (native_rows, *width):
            tensors[name] = GrownRows(
                tensors[name], num_rows, num_tokens - num_new_tokens, num_new_tokens
            )


def require_complete(path: str) -> None:
    """Check a chat checkpoint of any kind without reading a weight.

    Raises:
        CheckpointError: it is no chat checkpoint, a file is missing or cut short, or names and
            shapes of the weights are not those that its configuration wants.
    """
    sources = find_sources(SourceConfig.whole(path))
    config, adapter = sources.config, sources.adapter
    if is_quantised(config):
        return  # bitsandbytes' names and shapes, which from_pretrained compares itself
    if adapter:
        require_adapter_fits(adapter, sources.tensors, sources.adapter_config, sources.where)
    has_ranks = config.use_llm_lora or config.use_backbone_lora
    if adapter and (is_bare_adapter(Path(path)) or not has_ranks):
        # On layers that its own settings choose: PEFT compares them when it loads it.
        config.use_llm_lora = config.use_backbone_lora = 0
        adapter = {}
    available = sources.tensors | adapter
    skeleton = settled_skeleton(config, available, sources.replaced, sources.where)
    fit_tensors(skeleton, available, sources.where)


def fit_tensors(
    skeleton: Skeleton, available: Mapping[str, TensorSource], where: str
) -> dict[str, TensorSource]:
    """Give each of a model's tensors its source, one to one.

    Returns:
        By parameter name, in the model's order, tied weights once.

    Raises:
        CheckpointError: a tensor is missing, surplus, of zero size or of another shape.
    """
    match = names.match_names(skeleton.aliases, available)
    names.require_fit(
        where,
        missing=match.missing,
        surplus=match.surplus,
        shapes={name: (t.shape, skeleton.shapes[name]) for name, t in match.sources.items()},
    )
    return match.sources


def build_model(
    build: BuildConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_new_tokens: int = 0,
    plan: LoadPlan | None = None,
    device: torch.device = _CPU,
) -> InternVLChatModel:
    """Build the model (under ZeRO-3, this rank's runs of it) with its weights in place.

    Whether ZeRO-3 is on is what TrainingArguments announced to transformers, so they must exist
    before this is called. Every rank calls it; all read the files, each its own part.

    Args:
        build: what to build.
        tokenizer: with the special tokens added.
        num_new_tokens: what :func:`add_special_tokens` returned.
        plan: from :func:`inspect_checkpoint` with the same arguments; used up.
        device: that holds the model. ZeRO-3 places its runs itself.

    Returns:
        The model in evaluation mode, nothing frozen but the layers under an adapter.

    Raises:
        CheckpointError, ConfigError: as :func:`inspect_checkpoint`.
    """
    if plan is None:
        plan = inspect_checkpoint(build, tokenizer, num_new_tokens=num_new_tokens)
    _set_dtype(plan.config, build.dtype)
    if build.load_in_4bit:
        plan.config.update({TRAINED_IN_4BIT: True})
    elif hasattr(plan.config, TRAINED_IN_4BIT):
        delattr(plan.config, TRAINED_IN_4BIT)
    model = _filled(build, plan, device)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    model.adapter_base = plan.adapter_base
    model.no_adapter_base_reason = plan.no_base_reason
    model.adapter_modules = plan.adapter_modules
    return model.eval()


def _filled(build: BuildConfig, plan: LoadPlan, device: torch.device) -> InternVLChatModel:
    """The model of a plan, whose sources it uses up, in the way that the run holds weights."""
    config, tensors, whole = plan.config, plan.tensors, plan.adapter_modules
    if build.load_in_4bit:
        return build_in_four_bits(config, build.trainable, tensors, whole, build.dtype, device)
    if build.frozen_dtype != build.dtype:
        return build_in_two_dtypes(
            config, build.trainable, tensors, whole, build.dtype, build.frozen_dtype, device
        )
    zero3 = deepspeed_config_if_zero3()
    if zero3 is None:
        return build_in_one_dtype(config, tensors, build.dtype, device)
    return _build_partitioned(config, tensors, build.dtype, zero3)


def _build_partitioned(
    config: InternVLChatConfig,
    tensors: dict[str, TensorSource],
    dtype: torch.dtype,
    zero3: dict[str, Any],
) -> InternVLChatModel:
    from transformers.modeling_utils import local_torch_dtype

    from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

    with local_torch_dtype(dtype, "InternVLChatModel"), partitioned_construction(zero3):
        model = InternVLChatModel(config)
    tie_as_configured(model)
    for name, target in parameters_and_buffers(model).items():
        write_tensor(target, tensors.pop(name))
    return model


def vision_problems(
    vision: Any, *, image_size: int, down_sample_ratio: float, vision_select_layer: int
) -> Iterator[str]:
    """What does not fit a vision tower: a sentence each, with its mend.

    Args:
        vision: an InternVisionConfig.
        image_size: side of a tile in pixels; must give whole patches, and whole tokens after the
            pixel shuffle.
        down_sample_ratio: of the pixel shuffle, per side.
        vision_select_layer: layer whose output is projected.
    """
    patch, layers = vision.patch_size, vision.num_hidden_layers
    unit = image_size_unit(patch, down_sample_ratio)
    if image_size % unit:
        below = max(image_size // unit, 1) * unit
        yield (
            f"--force_image_size {image_size} is no multiple of patch / ratio = {patch} / "
            f"{down_sample_ratio:g} = {unit}. Nearest that work: {below} or {below + unit}."
        )
    if not -layers - 1 <= vision_select_layer <= layers:
        yield (
            f"--vision_select_layer {vision_select_layer}: the tower has {layers} layers. Give -1 "
            "for the last one's output."
        )


def _apply(build: BuildConfig, config: InternVLChatConfig, num_tokens: int) -> None:
    """Write what the run decides into the configuration that the checkpoint brought."""
    shape, vision = build.shape, config.vision_config
    require(
        vision_problems(
            vision,
            image_size=build.images.image_size,
            down_sample_ratio=shape.down_sample_ratio,
            vision_select_layer=shape.vision_select_layer,
        )
    )
    vision.image_size = build.images.image_size
    vision.drop_path_rate = shape.drop_path_rate
    # A padded vocabulary stays: shrinking it would cut rows that the head was trained with.
    llm_config: Any = config.llm_config
    llm_config.vocab_size = max(llm_config.vocab_size, num_tokens)
    config.select_layer = shape.vision_select_layer
    config.downsample_ratio = shape.down_sample_ratio
    config.template = shape.template
    config.ps_version = shape.ps_version
    config.update(build.images.stored())
    if build.attn_implementation is not None:
        config._attn_implementation = build.attn_implementation


def _set_dtype(config: InternVLChatConfig, dtype: torch.dtype) -> None:
    parts: tuple[Any, ...] = (config, config.vision_config, config.llm_config)
    for part in parts:
        part.dtype = dtype


def _adapter_base(sources: Sources, grown: bool, native_size: int) -> tuple[str | None, str]:
    """The checkpoint an adapter-only save may refer to, or why there is none."""
    if sources.adapter_base is None:
        return None, "the model was stitched, or its checkpoint carries the adapter itself"
    if grown:
        return None, "the vocabulary grew, so the base checkpoint lacks the new rows"
    if sources.config.vision_config.image_size != native_size:
        return None, "the position embeddings were resized"
    return sources.adapter_base, ""
