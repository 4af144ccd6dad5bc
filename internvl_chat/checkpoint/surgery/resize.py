"""``resize-pos-embed``: position embeddings for another image size, once and for all."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from internvl_chat.checkpoint.hub import local_model
from internvl_chat.checkpoint.partition import write_tensor
from internvl_chat.checkpoint.resize import ResizedPositions
from internvl_chat.checkpoint.save import MAX_SHARD_BYTES
from internvl_chat.checkpoint.surgery.merged import open_merged
from internvl_chat.checkpoint.surgery.write import (
    Progress,
    new_directory,
    refuse_existing,
    stored_dtype,
    write_files_beside,
    write_provenance,
    write_weights,
)
from internvl_chat.checkpoint.tensor_files import TensorSource, open_weights
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.configuration_intern_vit import InternVisionConfig
from internvl_chat.model.configuration_internvl_chat import image_size_unit, nearest_image_size
from internvl_chat.model.modeling_intern_vit import InternVisionEmbeddings

_EMBEDDINGS = "vision_model.embeddings."
_POSITIONS = f"{_EMBEDDINGS}position_embedding"


@dataclass(frozen=True, kw_only=True)
class ResizeReport:
    """Before and after."""

    old_image_size: int
    new_image_size: int
    num_image_token: int
    """Tokens a tile takes now."""


def resize_pos_embed(
    checkpoint: str,
    output_dir: str,
    image_size: int,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> ResizeReport:
    """Write a chat checkpoint whose position embeddings are laid out for another image size.

    Bicubic in fp32, the class token's row untouched. Checked by comparing the patch embeddings of
    an image of the new size with those of the old checkpoint, which interpolates as it runs.

    Args:
        checkpoint: chat checkpoint; LoRA weights in it are merged on the way.
        output_dir: new.
        image_size: side of a tile in pixels, a multiple of patch size over shuffle ratio.
        dtype: of the written weights; each its own by default.
        max_shard_bytes: of a weight file.
        progress: told after every file.

    Raises:
        CheckpointError: the checkpoint is broken.
        ConfigError: ``output_dir`` is taken, or the size is no such multiple.
    """
    refuse_existing(Path(output_dir))
    merged = open_merged(checkpoint := local_model(checkpoint))
    config = merged.config
    unit = image_size_unit(config.vision_config.patch_size, config.downsample_ratio)
    if image_size < unit or image_size % unit:
        raise ConfigError(
            f"{image_size} is no multiple of {unit} (patch size over shuffle ratio)",
            where="image size",
            fix=f"Try {nearest_image_size(image_size, unit)}.",
        )
    old = copy.deepcopy(config.vision_config)
    config.vision_config.image_size = config.force_image_size = image_size
    num_patches = (image_size // old.patch_size) ** 2
    tensors: dict[str, TensorSource] = dict(merged.tensors)
    tensors[_POSITIONS] = ResizedPositions(tensors[_POSITIONS], num_patches)
    with new_directory(Path(output_dir)) as directory:
        write_weights(
            tensors, directory, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
        _compare_embeddings(old, merged.tensors, config.vision_config, directory, image_size)
        write_files_beside(config, merged.path, directory, dtype=dtype)
        write_provenance(
            merged,
            directory,
            "resize-pos-embed",
            old_image_size=old.image_size,
            image_size=image_size,
        )
    return ResizeReport(
        old_image_size=old.image_size,
        new_image_size=image_size,
        num_image_token=config.num_image_token,
    )


@torch.no_grad()
def _compare_embeddings(
    old: InternVisionConfig,
    before: dict[str, TensorSource],
    new: InternVisionConfig,
    directory: Path,
    image_size: int,
) -> None:
    """An image of the new size must give what the old model makes of it."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, old.num_channels, image_size, image_size, generator=generator)
    written = open_weights(directory)
    wanted = _embeddings(old, before)(image)
    found = _embeddings(new, written)(image)
    unit = torch.finfo(stored_dtype(written[_POSITIONS], None)).eps
    limit = max(unit, 1e-6) * float(wanted.abs().max())
    worst = float((wanted - found).abs().max())
    if not worst <= limit:
        raise CheckpointError(
            f"resized embeddings differ from interpolated ones by {worst:.2e} (limit {limit:.0e})",
            where=str(directory),
        )


def _embeddings(
    config: InternVisionConfig, tensors: dict[str, TensorSource]
) -> InternVisionEmbeddings:
    module = InternVisionEmbeddings(config)
    for name, parameter in module.named_parameters():
        write_tensor(parameter, tensors[_EMBEDDINGS + name])
    return module
