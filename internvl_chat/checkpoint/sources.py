"""The files behind a model: configurations read and weights listed, no weight read yet."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from huggingface_hub.errors import StrictDataclassError

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.adapters import (
    read_adapter,
    require_readable_settings,
    split_adapter,
)
from internvl_chat.checkpoint.hub_errors import download_command
from internvl_chat.checkpoint.hub_names import hub_name, path_hint, portable_name
from internvl_chat.checkpoint.tensor_files import TensorSource, open_weights
from internvl_chat.config import SourceConfig
from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    OLD_ADAPTER_WEIGHTS_NAME,
    find_adapter_base,
    is_adapter,
)

if TYPE_CHECKING:
    from internvl_chat.model.configuration_intern_vit import InternVisionConfig
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
_VALUES: Final[dict[str, tuple[type, str]]] = {
    "use_backbone_lora": (int, "a rank, or 0"),
    "use_llm_lora": (int, "a rank, or 0"),
    "lora": (dict, "settings of PEFT's LoraConfig"),
    "force_image_size": (int, "a number of pixels"),
    "min_dynamic_patch": (int, "a number of tiles"),
    "max_dynamic_patch": (int, "a number of tiles"),
    "dynamic_image_size": (bool, "true or false"),
    "use_thumbnail": (bool, "true or false"),
    "pad2square": (bool, "true or false"),
    "template": (str, "a template's name"),
    "system_message": (str, "a text"),
}
"""Values of ``config.json`` that nothing else looks at before they are used; null is none."""
UNFIT_CONFIGURATION = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    AssertionError,
    StrictDataclassError,
)
"""What transformers' and torch's classes raise over a value that no model can be made of."""


@dataclass(kw_only=True)
class Sources:
    """What the files say about a model before anything of it is built."""

    where: str
    """The paths, for messages."""
    config: InternVLChatConfig
    """As in the files (or as stitched): vocabulary and image size still native."""
    tensors: dict[str, TensorSource]
    """By name in the chat model."""
    new_prefixes: tuple[str, ...] = ()
    """Parts that no file holds on purpose: they start from random numbers."""
    adapter: dict[str, TensorSource] = field(default_factory=dict)
    """Weights of an adapter-only checkpoint, by parameter name."""
    adapter_base: str | None = None
    """A whole checkpoint without adapters to which adapter-only saves may refer."""
    adapter_config: dict[str, Any] = field(default_factory=dict)
    """Contents of ``adapter_config.json``."""
    replaced: dict[str, TensorSource] = field(default_factory=dict)
    """What the adapter's whole modules took the place of in ``tensors``."""

    @property
    def adapter_modules(self) -> tuple[str, ...]:
        """Parts that the adapter-only checkpoint stores whole, as PEFT's ``modules_to_save``."""
        return tuple(self.adapter_config.get("modules_to_save") or ())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise CheckpointError(
            f"cannot be read ({err.strerror})",
            where=str(path),
            fix="Check the path.",
        ) from err
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"is no JSON ({err})", where=str(path)) from err
    if not isinstance(value, dict):
        raise CheckpointError("is no JSON object", where=str(path))
    return value


def read_chat_config(path: str | Path) -> InternVLChatConfig:
    """Configuration of a chat checkpoint: its own, or its base's where PEFT alone wrote it.

    Raises:
        CheckpointError: it is missing, or not that of a chat model.
    """
    found = find_chat_config(path)
    return _chat_config(read_json(found), found.parent)


def require_config(path: str | Path) -> Path:
    """``config.json`` of a model's directory.

    Raises:
        CheckpointError: there is no such directory, or no such file in it.
    """
    config = Path(path) / CONFIG_NAME
    if config.is_file():
        return config
    raise CheckpointError(
        f"no {CONFIG_NAME} in it" if Path(path).is_dir() else "no such directory",
        where=str(path),
        fix=path_hint(path),
    )


def find_chat_config(path: str | Path) -> Path:
    """``config.json`` of a chat checkpoint: its own, or its base's where PEFT alone wrote it.

    Reads no weight and imports no model: a check that costs nothing before a run.

    Raises:
        CheckpointError: no such directory, no configuration in it, or a base that is not there.
    """
    directory = Path(path)
    if is_bare_adapter(directory):
        return resolve_adapter_base(directory) / CONFIG_NAME
    return require_config(directory)


def is_bare_adapter(directory: Path) -> bool:
    """Whether PEFT alone wrote the directory: an adapter without a model's configuration."""
    has_config = (directory / CONFIG_NAME).is_file()
    return (directory / ADAPTER_CONFIG_NAME).is_file() and not has_config


def find_companion(path: str | Path, name: str) -> Path:
    """Where a small file of a chat checkpoint lies, or would: beside its weights or its adapter,
    else beside the adapter's base.

    Raises:
        CheckpointError: the adapter has no such file and its base is not there.
    """
    directory = Path(path)
    if (directory / name).is_file() or not is_adapter(directory):
        return directory / name
    return resolve_adapter_base(directory) / name


def find_sources(source: SourceConfig) -> Sources:
    """Read configurations and weight headers.

    Raises:
        CheckpointError: a file is missing, broken or of another kind of model.
    """
    if source.model_name_or_path:
        return _chat_sources(source.model_name_or_path)
    return _stitched_sources(source)


def _chat_sources(path: str) -> Sources:
    directory = Path(path)
    if is_adapter(directory):
        return _adapter_sources(directory)
    config = _chat_config(read_json(directory / CONFIG_NAME), directory)
    _refuse_adapter_beside(directory)
    require_generation_settings(directory)
    wrapped = bool(config.use_llm_lora or config.use_backbone_lora or config.lora)
    return Sources(
        where=portable_name(path),
        config=config,
        tensors=open_weights(directory),
        adapter_base=None if wrapped else os.path.abspath(path),
    )


def is_quantised(config: InternVLChatConfig) -> bool:
    """Whether a configuration, or that of its towers, says that the weights are quantised."""
    parts = (config, config.llm_config, config.vision_config)
    return any(getattr(part, "quantization_config", None) for part in parts)


def refuse_quantised(config: InternVLChatConfig, where: str) -> None:
    """For what reads weights as they are.

    Raises:
        CheckpointError: they are quantised.
    """
    if is_quantised(config):
        raise CheckpointError(
            "its weights are quantised",
            where=where,
            fix="Take the checkpoint that it was quantised from.",
        )


def require_generation_settings(directory: Path) -> None:
    """Look at ``generation_config.json``: transformers passes over one that it cannot parse, and
    with it the tokens at which answers end, or fails after the weights were read.

    Raises:
        CheckpointError: no generation settings can be made of it.
    """
    path = directory / GENERATION_NAME
    if not path.is_file():
        return
    from transformers import GenerationConfig

    values = read_json(path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = values.get(name)
        if not all(type(one) is int for one in (ids if isinstance(ids, list) else [ids or 0])):
            raise CheckpointError(f"{name} is {ids!r}, wanted a token's id", where=str(path))
    try:
        GenerationConfig.from_dict(values)
    except UNFIT_CONFIGURATION as err:
        raise CheckpointError(said(err), where=str(path)) from err


def _refuse_adapter_beside(directory: Path) -> None:
    """A whole model with an adapter beside it: transformers adds the adapter, others do not.

    Raises:
        CheckpointError: the directory holds both.
    """
    weights = (ADAPTER_WEIGHTS_NAME, OLD_ADAPTER_WEIGHTS_NAME)
    found = next((name for name in weights if (directory / name).is_file()), None)
    if found is not None and (directory / ADAPTER_CONFIG_NAME).is_file():
        raise CheckpointError(
            f"holds the weights of a whole model and those of an adapter ({found}); some programs "
            "read both, some the first alone",
            where=str(directory),
            fix=f"Move {found} and {ADAPTER_CONFIG_NAME} into a directory of their own.",
        )


def _chat_config(values: dict[str, Any], directory: Path) -> InternVLChatConfig:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

    if values.get("model_type") != InternVLChatConfig.model_type:
        raise CheckpointError(
            f"model_type is {values.get('model_type')!r}, wanted {InternVLChatConfig.model_type!r}",
            where=str(directory / CONFIG_NAME),
            fix="Separate models are stitched by --vision_path, --mlp_path and --llm_path.",
        )
    for name, (kind, wanted) in _VALUES.items():
        value = values.get(name)
        # By type, for true is no number of tiles. Some write 0 and 1 for false and true.
        is_right = type(value) is kind or (kind is bool and value in (0, 1))
        is_right = is_right and not (isinstance(value, int) and value < 0)
        if value is not None and not is_right:
            raise CheckpointError(
                f"{name} is {value!r}, wanted {wanted}", where=str(directory / CONFIG_NAME)
            )
    if values.get("lora"):
        settings = {"peft_type": "LORA", **values["lora"]}
        require_readable_settings(settings, str(directory / CONFIG_NAME))
    try:
        return InternVLChatConfig.from_pretrained(str(directory), local_files_only=True)
    except UNFIT_CONFIGURATION as err:
        raise CheckpointError(said(err), where=str(directory / CONFIG_NAME)) from err


def said(err: BaseException) -> str:
    """What a library found wrong with a configuration, its error's kind where that is needed."""
    text = " ".join(str(err).split())
    return text if isinstance(err, ValueError) else f"{type(err).__name__}: {text}"


def resolve_adapter_base(directory: Path) -> Path:
    """The checkpoint that an adapter-only checkpoint belongs to.

    Raises:
        CheckpointError: it is not where ``adapter_config.json`` says, nor beside the adapter.
    """
    config_path = directory / ADAPTER_CONFIG_NAME
    try:
        named, found = find_adapter_base(directory, read_json(config_path))
    except ValueError as err:
        raise CheckpointError(str(err), where=str(config_path)) from err
    if found is None and (model := hub_name(named)) is not None:
        raise CheckpointError(
            f"its base model {model} is not in the hub's cache",
            where=str(config_path),
            fix=f"Download it with: {download_command(model)}",
        )
    if found is None:
        raise CheckpointError(
            f"its base model is not at {named}",
            where=str(config_path),
            fix="Put the base checkpoint there, or write its path into base_model_name_or_path.",
        )
    return found


def _adapter_sources(directory: Path) -> Sources:
    base = _chat_sources(str(resolve_adapter_base(directory)))
    if base.adapter_base is None:
        raise CheckpointError(
            "its base model carries an adapter itself", where=str(directory), fix="Merge it first."
        )
    bare = is_bare_adapter(directory)
    if not bare:  # its run may have chosen another template or tiling
        base.config = _chat_config(read_json(directory / CONFIG_NAME), directory)
    base.where = f"{portable_name(str(directory))} on {base.where}"
    base.adapter_config = read_json(directory / ADAPTER_CONFIG_NAME)
    require_readable_settings(base.adapter_config, str(directory / ADAPTER_CONFIG_NAME))
    base.adapter, whole = split_adapter(read_adapter(directory))
    base.replaced = {name: base.tensors[name] for name in whole if name in base.tensors}
    base.tensors |= whole
    if bare:
        base.config.use_llm_lora = _rank(base.adapter, names.LLM_PREFIX)
        base.config.use_backbone_lora = _rank(base.adapter, names.VISION_PREFIX)
    return base


def rank_in(sources: Sources, prefix: str) -> int:
    """The largest rank of the LoRA layers that a checkpoint has in a tower, whatever their kind."""
    weights = {**sources.tensors, **sources.adapter}
    return max(
        (
            tensor.shape[0]
            for name, tensor in weights.items()
            if name.startswith(prefix) and ".lora_A." in name and tensor.shape
        ),
        default=0,
    )


def _rank(adapter: dict[str, TensorSource], prefix: str) -> int:
    """Of the LoRA layers in a tower, 0 if it has none."""
    ranks = (
        tensor.shape[0]
        for name, tensor in adapter.items()
        if name.startswith(prefix) and ".lora_A." in name
    )
    return next(ranks, 0)


def _stitched_sources(source: SourceConfig) -> Sources:
    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

    assert source.vision_path is not None  # SourceConfig.__post_init__
    assert source.llm_path is not None
    vision, llm = Path(source.vision_path), Path(source.llm_path)
    config = InternVLChatConfig(
        vision_config=vision_config_of(vision),
        llm_config=llm_config_of(llm),
    )
    tensors = names.with_prefix(open_weights(vision), names.VISION_PREFIX)
    tensors |= names.with_prefix(open_weights(llm), names.LLM_PREFIX)
    paths = [portable_name(source.vision_path), portable_name(source.llm_path)]
    new_prefixes: tuple[str, ...] = ()
    if source.mlp_path is None:
        new_prefixes = (names.MLP_PREFIX,)
        logger.warning("no --mlp_path: the projector starts from random numbers")
    else:
        tensors |= names.with_prefix(open_weights(Path(source.mlp_path)), names.MLP_PREFIX)
        paths.insert(1, portable_name(source.mlp_path))
    return Sources(
        where=" + ".join(paths), config=config, tensors=tensors, new_prefixes=new_prefixes
    )


def vision_config_of(directory: Path) -> dict[str, Any]:
    """Configuration of the vision tower that a checkpoint is, or holds.

    Raises:
        CheckpointError: it has no configuration, or is no InternViT.
    """
    values = read_json(directory / CONFIG_NAME)
    if "vision_config" in values:
        values = values["vision_config"]
    if values.get("model_type") != "intern_vit_6b":
        raise CheckpointError(
            f"model_type is {values.get('model_type')!r}, wanted 'intern_vit_6b'",
            where=str(directory / CONFIG_NAME),
            fix="--vision_path takes an InternViT or an InternVL-Chat checkpoint.",
        )
    return _without_path(values)


def native_vision_config(source: SourceConfig) -> InternVisionConfig:
    """The vision tower's configuration as it lies on disk.

    Raises:
        CheckpointError: it cannot be read, or is of another kind of model.
    """
    from internvl_chat.model.configuration_intern_vit import InternVisionConfig

    if source.model_name_or_path:
        return read_chat_config(source.model_name_or_path).vision_config
    assert source.vision_path is not None  # SourceConfig.__post_init__
    return InternVisionConfig(**vision_config_of(Path(source.vision_path)))


def llm_config_of(directory: Path) -> dict[str, Any]:
    """Configuration of the language model that a checkpoint is, or holds.

    Raises:
        CheckpointError: transformers does not know it.
    """
    from transformers import AutoConfig

    values = read_json(directory / CONFIG_NAME)
    if "llm_config" in values:
        return _without_path(values["llm_config"])
    try:
        config = AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError) as err:
        raise CheckpointError(
            f"transformers cannot read this configuration ({str(err).splitlines()[0]})",
            where=str(directory / CONFIG_NAME),
            fix="--llm_path takes a causal language model that transformers knows.",
        ) from err
    return _without_path(config.to_dict())


def _without_path(values: dict[str, Any]) -> dict[str, Any]:
    """A part's configuration without the place it was loaded from."""
    return {key: value for key, value in values.items() if key != "_name_or_path"}
