"""A chat checkpoint beside the code of the published one it began with.

``config.json`` stays the published one but for what training changed; the tokenizer's files stay
where it cuts text as before. What that code would compute otherwise is refused.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.artifacts import write_tokenizer
from internvl_chat.checkpoint.hub_names import portable_name
from internvl_chat.checkpoint.skeleton import Skeleton
from internvl_chat.checkpoint.sources import (
    CONFIG_NAME,
    GENERATION_NAME,
    UNFIT_CONFIGURATION,
    read_json,
)
from internvl_chat.checkpoint.surgery.native import chat_template
from internvl_chat.checkpoint.surgery.old_tokenizers import spell_for_old_tokenizers
from internvl_chat.checkpoint.surgery.published_code import (
    TOKENIZER_CONFIG_NAME,
    PublishedCode,
    template_values,
)
from internvl_chat.checkpoint.tensor_files import (
    SAFETENSORS_INDEX_NAME,
    TORCH_INDEX_NAME,
    TensorSource,
    listed,
    open_weights,
)
from internvl_chat.checkpoint.tokenizer import has_tokenizer, load_tokenizer
from internvl_chat.errors import CheckpointError
from internvl_chat.files import write_json
from internvl_chat.model.adapter import COMPUTED_BUFFERS
from internvl_chat.model.chat import DEFAULT_TEMPLATE
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig
from internvl_chat.model.conversation import get_conv_template

logger = logging.getLogger(__name__)

CHAT_TEMPLATE_NAME = "chat_template_serving.jinja"
_IMAGE = "<image>\n"
"""How vLLM has an image written in a prompt for this layout."""
_PARTS = ("vision_config", "llm_config")
_COMPUTED_FROM = {
    "": ("select_layer", "downsample_ratio", "ps_version", "force_image_size"),
    "vision_config": (
        "norm_type",
        "qk_normalization",
        "qkv_bias",
        "hidden_act",
        "layer_norm_eps",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "patch_size",
        "num_channels",
        "image_size",
    ),
}
"""Settings that the published code must read for itself; the language model is transformers'."""
_NOT_COMPARED = {"transformers_version", "auto_map", "architectures", "_name_or_path"}
_NOT_COMPARED |= {"dtype", "torch_dtype", "return_dict"}
_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    TOKENIZER_CONFIG_NAME,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_PROBES = (
    "The answer is 42, not 17.",
    "two  spaces\nand\ttabs",
    "中文 naïve Ω 😀",
    "<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhat?<|im_end|><|im_start|>assistant\n",
)


def published_config(code: PublishedCode) -> InternVLChatConfig:
    """The published configuration, read as ours.

    Raises:
        CheckpointError: no model can be made of it.
    """
    try:
        return InternVLChatConfig(**json.loads(json.dumps(code.values)))
    except UNFIT_CONFIGURATION as err:
        raise CheckpointError(
            f"no model can be made of it ({err})",
            where=str(code.directory / CONFIG_NAME),
            fix="Download it again.",
        ) from err


def require_code_fits(
    code: PublishedCode, config: InternVLChatConfig, tensors: Mapping[str, Any], where: str
) -> None:
    """The published code must compute what this model computes.

    Args:
        code: of the published checkpoint.
        config: of the model, without adapters.
        tensors: names of its weights, tied ones under each name.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: it would not, with every reason.
    """
    theirs = published_config(code)
    reasons = [
        *_unread_settings(code, config, theirs),
        *_unknown_language_model(code, config, theirs),
        *_differing_weights(code, tensors),
    ]
    name = config.template or DEFAULT_TEMPLATE
    if template_values(code, name) is None:
        reasons.append(f"it has no chat template {name!r}, which this model was trained with")
    if reasons:
        there = portable_name(str(code.directory))
        raise CheckpointError(
            f"the code of {there} would compute another model: {'; '.join(reasons)}",
            where=where,
            fix="Give --code the folder of the checkpoint that training began with, or export "
            "without --code: our own code runs under transformers 4.48 and newer.",
        )
    _tell_other_prompts(code, config)


def _unread_settings(
    code: PublishedCode, config: InternVLChatConfig, theirs: InternVLChatConfig
) -> list[str]:
    known = code.identifiers
    reasons = []
    for part, keys in _COMPUTED_FROM.items():
        mine, other = (getattr(one, part) if part else one for one in (config, theirs))
        for key in keys:
            values = getattr(mine, key), getattr(other, key)
            if values[0] != values[1] and key not in known:
                reasons.append(
                    f"{key} is {values[0]!r} here and {values[1]!r} there, and it reads no {key}"
                )
    return reasons


def _unknown_language_model(
    code: PublishedCode, config: InternVLChatConfig, theirs: InternVLChatConfig
) -> list[str]:
    mine, other = (_class_of(one) for one in (config, theirs))
    if mine == other or mine in code.identifiers:
        return []
    return [f"the language model is a {mine} here and a {other} there"]


def _class_of(config: InternVLChatConfig) -> str:
    """Name of the language model's class, as configurations say it."""
    values = config.to_diff_dict()["llm_config"]
    return str((values.get("architectures") or ["nothing"])[0])


def _differing_weights(code: PublishedCode, tensors: Mapping[str, Any]) -> list[str]:
    """Where the folder holds weights, or their index: names that only one of the two has."""
    found = _published_names(code.directory)
    if found is None:
        return []
    lacking = sorted(found - tensors.keys())
    tied = {name for name in tensors if name.endswith("lm_head.weight")}
    surplus = sorted(tensors.keys() - found - tied)
    sides = ((lacking, "weights of it that are not here"), (surplus, "weights that it has not"))
    return [f"{len(side)} {what}: {listed(side, 3)}" for side, what in sides if side]


def _published_names(directory: Path) -> set[str] | None:
    found: set[str] | None = None
    for name in (SAFETENSORS_INDEX_NAME, TORCH_INDEX_NAME):
        if (directory / name).is_file():
            found = set(read_json(directory / name).get("weight_map") or {})
            break
    else:
        if any((directory / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
            found = set(open_weights(directory))
    if not found:
        return None
    return {names.unwrapped_name(name) for name in found if not COMPUTED_BUFFERS.search(name)}


def _tell_other_prompts(code: PublishedCode, config: InternVLChatConfig) -> None:
    """Warn where the published code writes another prompt than training did."""
    template = get_conv_template(config.template or DEFAULT_TEMPLATE)
    theirs = template_values(code, template.name) or {}
    stored: str | None = getattr(config, "system_message", None)
    system = template.system_message if stored is None else stored
    pairs = (
        ("system message", system, theirs.get("system_message", "")),
        ("system template", template.system_template, theirs.get("system_template")),
        ("name of the user", template.roles[0], next(iter(theirs.get("roles") or ()), None)),
        ("end of a turn", template.stop_str, theirs.get("sep2") or theirs.get("sep")),
    )
    for what, mine, other in pairs:
        if other is not None and mine.strip(" \n:") != str(other).strip(" \n:"):
            logger.warning(
                "the chat template %s of the published code has the %s %r, training wrote %r: "
                "answers may differ. Set it in your program (model.system_message, where its class "
                "has that); servers take %s",
                template.name,
                what,
                other,
                mine,
                CHAT_TEMPLATE_NAME,
            )


def all_names(tensors: Mapping[str, TensorSource], skeleton: Skeleton) -> dict[str, TensorSource]:
    """The weights with tied ones under each of their names.

    Under transformers 4.37 the published class ties nothing when it is loaded: a head that no file
    holds would stay random.
    """
    return {alias: tensors[name] for name, group in skeleton.aliases.items() for alias in group}


def write_published_files(
    code: PublishedCode,
    config: InternVLChatConfig,
    source: Path,
    directory: Path,
    *,
    dtype: torch.dtype,
) -> None:
    """Put code, configuration, tokenizer and settings of ``generate`` beside the weights.

    Args:
        code: of the published checkpoint.
        config: of the model, without adapters.
        source: folder with the model's own tokenizer.
        directory: of the new checkpoint; ours is in it already, and is replaced.
        dtype: of the weights written.
    """
    for file in directory.glob("*.py"):
        file.unlink()
    code.copy_to(directory)
    theirs = json.loads(published_config(code).to_json_string())
    values = merged_values(code.values, read_json(directory / CONFIG_NAME), theirs)
    _set_dtype(values, str(dtype).removeprefix("torch."))
    write_json(directory / CONFIG_NAME, values)
    _write_tokenizer(code, config, source, directory)
    if not (directory / GENERATION_NAME).is_file() and (code.directory / GENERATION_NAME).is_file():
        shutil.copyfile(code.directory / GENERATION_NAME, directory / GENERATION_NAME)
    template = get_conv_template(config.template or DEFAULT_TEMPLATE)
    text = chat_template(template, getattr(config, "system_message", None), image=_IMAGE)
    (directory / CHAT_TEMPLATE_NAME).write_text(text, encoding="utf-8")


def merged_values(
    published: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """The published values, spelled as published, but for those that are others now.

    Args:
        published: as the published ``config.json`` has them.
        ours: of the model, as we write them.
        theirs: the published ones as we would write them: a key is changed only where the two
            differ, whatever the published file calls it.
    """
    result = dict(published)
    for key in (*ours, *(key for key in theirs if key not in ours)):
        if key in _NOT_COMPARED:
            continue
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict) and key in _PARTS:
            alike = mine.get("model_type") == other.get("model_type")
            result[key] = merged_values(published.get(key) or {}, mine, other) if alike else mine
        elif mine == other:
            continue
        elif key in ours:
            result[key] = mine
        else:
            result.pop(key, None)
    return result


def _set_dtype(values: dict[str, Any], name: str) -> None:
    for part in (values, *(values[key] for key in _PARTS if isinstance(values.get(key), dict))):
        part["torch_dtype"] = name
        if "dtype" in part:  # transformers 5 wrote it
            part["dtype"] = name


def _write_tokenizer(
    code: PublishedCode, config: InternVLChatConfig, source: Path, directory: Path
) -> None:
    ours = load_tokenizer(str(source))
    for name in _TOKENIZER_FILES:
        (directory / name).unlink(missing_ok=True)
    if _is_unchanged(code, ours):
        files = [code.directory / name for name in _TOKENIZER_FILES]
        for file in (*code.tokenizer_files, *(path for path in files if path.is_file())):
            shutil.copyfile(file, directory / file.name)
        return
    write_tokenizer(ours, directory, config)
    path = directory / "tokenizer.json"
    if path.is_file():
        write_json(path, spell_for_old_tokenizers(read_json(path), str(path.name)))


def _is_unchanged(code: PublishedCode, ours: Any) -> bool:
    """Whether the published tokenizer gives the ids that the model was trained with."""
    if not has_tokenizer(code.directory):
        logger.warning("%s holds no tokenizer: the model's own is written", code.directory)
        return False
    try:
        theirs = load_tokenizer(str(code.directory))
    except CheckpointError as err:
        logger.warning("the published tokenizer is not taken over: %s", err)
        return False
    same = theirs.get_vocab() == ours.get_vocab() and all(
        theirs(text, add_special_tokens=False)["input_ids"]
        == ours(text, add_special_tokens=False)["input_ids"]
        for text in _PROBES
    )
    if not same:
        logger.warning(
            "the tokenizer is not that of %s any more (tokens were added, say): the model's own "
            "is written",
            code.directory,
        )
    return same
