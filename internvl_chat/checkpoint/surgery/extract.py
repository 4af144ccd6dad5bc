"""``extract``: vision tower, projector or language model as a checkpoint of its own."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from internvl_chat.checkpoint import names
from internvl_chat.checkpoint.artifacts import (
    PREPROCESSOR_NAME,
    copy_companion,
    write_config,
    write_model_code,
    write_tokenizer,
)
from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.save import MAX_SHARD_BYTES
from internvl_chat.checkpoint.surgery.merged import MergedCheckpoint, is_exact, open_merged
from internvl_chat.checkpoint.surgery.probe import fits_in_memory, require_same
from internvl_chat.checkpoint.surgery.write import (
    Progress,
    copy_language_files,
    materialise,
    new_directory,
    refuse_existing,
    stored_dtype,
    verify_weights,
    write_provenance,
    write_weights,
)
from internvl_chat.checkpoint.tensor_files import TensorSource, write_safetensors
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import ConfigError
from internvl_chat.files import written_aside
from internvl_chat.model.configuration_intern_vit import InternVisionConfig
from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)

Part = Literal["vit", "mlp", "llm"]
PREFIXES: Mapping[Part, str] = {
    "vit": names.VISION_PREFIX,
    "mlp": names.MLP_PREFIX,
    "llm": names.LLM_PREFIX,
}
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def extract(
    part: str,
    checkpoint: str,
    output: str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Take a part out of a chat checkpoint; LoRA weights in it are merged on the way.

    Args:
        part: ``vit`` (for ``--vision_path``), ``mlp`` (for ``--mlp_path``) or ``llm`` (for
            ``--llm_path``, and any program that runs such a language model).
        checkpoint: a chat checkpoint of any kind.
        output: a new directory; for ``mlp`` a new file, ``.safetensors`` or ``.pth``.
        dtype: of the written weights; theirs by default.
        max_shard_bytes: of a weight file.
        progress: told after every file.

    Returns:
        Number of tensors.

    Raises:
        CheckpointError: the checkpoint is broken.
        ConfigError: no such part, or ``output`` is taken or no weight file's name.
    """
    if part not in get_args(Part):
        raise ConfigError(f"no part {part!r}", where="extract", fix="Give vit, mlp or llm.")
    refuse_existing(Path(output))
    merged = open_merged(checkpoint := local_model(checkpoint))
    prefix = PREFIXES[part]  # type: ignore[index]
    tensors = {
        name.removeprefix(prefix): source
        for name, source in merged.tensors.items()
        if name.startswith(prefix)
    }
    if any(name.startswith(prefix) for name in merged.lora_weights):
        logger.warning("the LoRA weights of the %s are merged into what is written", part)
    if part == "mlp":
        _write_projector(tensors, Path(output), dtype)
        return len(tensors)
    config: Any = merged.config.vision_config if part == "vit" else merged.config.llm_config
    with new_directory(Path(output)) as directory:
        write_weights(
            tensors, directory, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
        _write_config(config, tensors, directory, dtype)
        if fits_in_memory(merged.tensors.values()):
            _compare(part, merged, checkpoint, directory, exact=is_exact(merged, dtype))
        else:
            logger.warning("too little memory to run the model in fp32: only weights are compared")
        if part == "vit":
            write_model_code(directory)
            copy_companion(merged.path, directory, PREPROCESSOR_NAME)
        else:
            write_tokenizer(load_tokenizer(str(merged.path)), directory, config)
            copy_language_files(merged.path, directory)
        write_provenance(merged, directory, f"extract {part}")
    return len(tensors)


def _write_config(
    config: Any, tensors: Mapping[str, TensorSource], directory: Path, dtype: torch.dtype | None
) -> None:
    own = copy.deepcopy(config)
    if own.model_type == InternVisionConfig.model_type:
        own.architectures = [InternVisionModel.__name__]
    else:
        own.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[own.model_type]]
    # Published V1-2 checkpoints say false, with which transformers' own classes fail.
    own.return_dict = True
    own.dtype = stored_dtype(next(iter(tensors.values())), dtype)
    write_config(own, directory)


@torch.no_grad()
def _compare(
    part: str, merged: MergedCheckpoint, checkpoint: str, directory: Path, *, exact: bool
) -> None:
    """What the extracted tower computes must be what it computes in the chat model.

    Raises:
        CheckpointError: it is not, though the weights are the same.
    """
    generator = torch.Generator().manual_seed(0)
    whole = InternVLChatModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    if part == "vit":
        vision = merged.config.vision_config
        shape = (1, vision.num_channels, vision.image_size, vision.image_size)
        given = torch.randn(shape, generator=generator)
        wanted = whole.vision_model(given, return_dict=True)[0]
    else:
        llm_config: Any = merged.config.llm_config
        given = torch.randint(llm_config.vocab_size, (1, 16), generator=generator)
        wanted = whole.language_model(given, return_dict=True)[0]
    del whole
    gc.collect()
    kind: Any = InternVisionModel if part == "vit" else AutoModelForCausalLM
    tower = kind.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False).eval()
    require_same(wanted, tower(given)[0], exact=exact, where=checkpoint)


def _write_projector(
    tensors: Mapping[str, TensorSource], output: Path, dtype: torch.dtype | None
) -> None:
    if output.suffix not in _FILE_SUFFIXES:
        raise ConfigError(
            f"{output.name!r} is no name of a weight file",
            where="extract mlp",
            fix=f"End it in {' or '.join(_FILE_SUFFIXES[:2])}.",
        )
    values = {name: materialise(source, dtype) for name, source in tensors.items()}
    with written_aside(output) as staging:
        if output.suffix == ".safetensors":
            write_safetensors(staging, values)
        else:
            torch.save(values, staging)
        verify_weights(tensors, staging, dtype=dtype)
