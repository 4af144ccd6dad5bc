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
from internvl_chat.model.configuration_internvl_chat import AUTO_MAP
from internvl_chat.model.constants import NORMALIZATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

logger = logging.getLogger(__name__)

PREPROCESSOR_NAME = "preprocessor_config.json"


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


def _name_class_for_v4(path: Path) -> None:
    """Name the general fast tokenizer as transformers 4 knows it; 5 takes either name."""
    values = read_json(path)
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
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
    tokenizer.save_pretrained(directory)
    _name_class_for_v4(directory / "tokenizer_config.json")
    processor = preprocessor_config(config.image_size, normalize_type, decode)
    write_json(directory / PREPROCESSOR_NAME, processor)
