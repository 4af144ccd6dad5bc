"""The small files of a checkpoint: configuration, model code, tokenizer, image preprocessing."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from transformers.dynamic_module_utils import get_relative_import_files

from internvl_chat import model as model_package
from internvl_chat.checkpoint.sources import find_companion, read_json
from internvl_chat.config import DecodeConfig, NormalizeType
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.files import write_json
from internvl_chat.model.configuration_internvl_chat import AUTO_MAP, spell_for_transformers_4
from internvl_chat.model.constants import NORMALIZATION

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

logger = logging.getLogger(__name__)

PREPROCESSOR_NAME = "preprocessor_config.json"
_TOKENIZER_CONFIG_NAME = "tokenizer_config.json"


def model_code_files() -> list[Path]:
    """The files that ``auto_map`` names and all that they import, as transformers follows them.

    ``save_pretrained`` copies by the same rule.
    """
    folder = Path(next(iter(model_package.__path__)))
    files = {folder / f"{target.partition('.')[0]}.py" for target in AUTO_MAP.values()}
    for file in sorted(files):
        files |= set(map(Path, get_relative_import_files(file)))
    return sorted(files)


def write_model_code(directory: Path) -> None:
    """Copy the model's code, so that the checkpoint loads without this package."""
    for file in model_code_files():
        shutil.copyfile(file, directory / file.name)


def preprocessor_config(
    image_size: int, normalize_type: NormalizeType, decode: DecodeConfig | None = None
) -> dict[str, Any]:
    """What ``CLIPImageProcessor`` needs to make pixels as training did, and keys of our own.

    Args:
        image_size: side of a tile.
        normalize_type: the pixel statistics.
        decode: how files became RGB; None leaves its keys away.
    """
    mean, std = NORMALIZATION[normalize_type]
    return {
        "crop_size": image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(std),
        "resample": 3,
        "size": image_size,
        **(decode.stored() if decode else {}),
    }


def normalize_type_of(directory: Path) -> NormalizeType:
    """The pixel statistics that a checkpoint was trained with, by its ``preprocessor_config.json``.

    By its base's for an adapter without one. ImageNet's, those of the published checkpoints, where
    there is none; also, with a warning, where it names others than training knows.
    """
    path = find_companion(directory, PREPROCESSOR_NAME)
    if not path.is_file():
        return "imagenet"
    values = read_json(path)
    found = [*values.get("image_mean", ()), *values.get("image_std", ())]
    for name in get_args(NormalizeType):
        wanted = [*NORMALIZATION[name][0], *NORMALIZATION[name][1]]
        if len(found) == len(wanted) and all(
            abs(one - two) < 1e-3 for one, two in zip(found, wanted, strict=True)
        ):
            return name
    logger.warning("%s: unknown pixel statistics %s; ImageNet's are used", path, found)
    return "imagenet"


def decode_config_of(directory: Path) -> DecodeConfig:
    """How files became RGB in a checkpoint's training, by its ``preprocessor_config.json``.

    By its base's for an adapter without one. As stored, as in the published checkpoints, where
    there is none or it says nothing of it.

    Raises:
        CheckpointError: a key of it has a value of another kind.
    """
    path = find_companion(directory, PREPROCESSOR_NAME)
    try:
        return DecodeConfig.of_preprocessor(read_json(path) if path.is_file() else {})
    except ConfigError as err:
        raise CheckpointError(" ".join(err.problems), where=str(path)) from err


def write_tokenizer(
    tokenizer: PreTrainedTokenizerBase, directory: Path, config: PretrainedConfig
) -> None:
    """Write a tokenizer so that transformers 4 and 5 load it with the same ids.

    Args:
        tokenizer: with the special tokens.
        directory: exists.
        config: of the model or its language model, whose context becomes ``model_max_length``.
    """
    tokenizer.save_pretrained(directory)
    path = directory / _TOKENIZER_CONFIG_NAME
    values = read_json(path)
    backend = directory / "tokenizer.json"
    if backend.is_file():
        values = _of_either_transformers(values, tokenizer, read_json(backend))
    context_length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(context_length, int):
        values["model_max_length"] = context_length
    write_json(path, values)


def _of_either_transformers(
    values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, backend: dict[str, Any]
) -> dict[str, Any]:
    """A fast tokenizer's ``tokenizer_config.json`` in which both versions read the same.

    Args:
        values: as transformers 5 wrote them.
        tokenizer: that wrote them.
        backend: contents of its ``tokenizer.json``.
    """
    # tokenizer.json says all that decides over ids. A model's own class would cut by rules of its
    # own instead (5), want vocabulary files that are not there (4), or differ with use_fast=False.
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Of the class that is no longer named, where nobody set them.
    values["model_input_names"] = list(tokenizer.model_input_names)
    values["padding_side"] = tokenizer.padding_side
    values["clean_up_tokenization_spaces"] = bool(tokenizer.clean_up_tokenization_spaces)
    pre_tokenizer = backend.get("pre_tokenizer") or {}
    if "add_prefix_space" in pre_tokenizer:  # 4 changes the tokenizer to what is said here
        values["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    # A list under 5's name is an error in 4; 5 reads either.
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    # How it was read here, and code that does not travel.
    for key in ("is_local", "local_files_only", "auto_map"):
        values.pop(key, None)
    return values


def write_config(config: PretrainedConfig, directory: Path) -> None:
    """Write a configuration of transformers' own classes so that transformers 4 reads it too."""
    config.save_pretrained(directory)
    path = directory / "config.json"
    values = read_json(path)
    parts = [values[name] for name in ("text_config", "vision_config") if name in values]
    for part in (values, *parts):
        spell_for_transformers_4(part)
    write_json(path, values)


def write_companions(
    config: InternVLChatConfig,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    normalize_type: NormalizeType = "imagenet",
    decode: DecodeConfig | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write everything of a checkpoint but its weights.

    Args:
        config: of the model.
        tokenizer: with the special tokens.
        directory: exists.
        normalize_type: the pixel statistics that the run used.
        decode: how it made files into RGB; None says nothing of it, as the published ones do.
        dtype: of the weights, if it is not the configuration's.
    """
    config.architectures = ["InternVLChatModel"]
    config.save_pretrained(directory)
    if dtype is not None:
        path = directory / "config.json"
        values = read_json(path)
        values["dtype"] = values["torch_dtype"] = str(dtype).removeprefix("torch.")
        write_json(path, values)
    write_model_code(directory)
    write_tokenizer(tokenizer, directory, config)
    processor = preprocessor_config(config.image_size, normalize_type, decode)
    write_json(directory / PREPROCESSOR_NAME, processor)


def copy_companion(source: Path, directory: Path, name: str) -> None:
    """Copy a small file that travels with a checkpoint, where there is one."""
    if (source / name).is_file():
        shutil.copyfile(source / name, directory / name)
