"""Writing a checkpoint from tensors that lie in other files, in the memory of one weight file.

What was written is read again and compared before the directory gets its name, so that a name
always stands for a complete and verified checkpoint. A name that is taken is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl_chat import __version__
from internvl_chat.checkpoint import sentencepiece_files
from internvl_chat.checkpoint.artifacts import (
    PREPROCESSOR_NAME,
    copy_companion,
    write_companions,
)
from internvl_chat.checkpoint.manifest import atomic_directory
from internvl_chat.checkpoint.partition import pieces
from internvl_chat.checkpoint.save import MAX_SHARD_BYTES, plan_shards, write_index
from internvl_chat.checkpoint.sources import (
    GENERATION_NAME,
    find_companion,
    read_json,
    resolve_adapter_base,
)
from internvl_chat.checkpoint.surgery.lora_merge import MergedLoraWeight, check_merged_weight
from internvl_chat.checkpoint.surgery.merged import PROVENANCE_NAME, MergedCheckpoint
from internvl_chat.checkpoint.tensor_files import (
    TensorSource,
    numel,
    open_weights,
    same_bits,
    write_safetensors,
)
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.files import write_json
from internvl_chat.model.adapter import is_adapter
from internvl_chat.model.configuration_internvl_chat import InternVLChatConfig

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def refuse_existing(target: Path) -> None:
    """Nothing is ever overwritten; an empty directory may be filled, but the working directory.

    It gets its content by a rename, which would leave the user's shell in a directory that is gone.

    Raises:
        ConfigError: the name is taken, or nothing can be made there.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(
            "exists and is not overwritten", where=str(target), fix="Choose another name."
        )
    if target.resolve() == Path.cwd():
        raise ConfigError(
            "is the working directory", where=str(target), fix="Name a new directory."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(
            f"cannot be created ({err.strerror})",
            where=str(target.parent),
            fix="Choose another place.",
        ) from err


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory to write into that gets its name when the block ends well.

    Raises:
        ConfigError: the name is taken.
    """
    refuse_existing(target)
    with atomic_directory(target) as staging:
        yield staging


def stored_bytes(tensors: Mapping[str, TensorSource], dtype: torch.dtype | None) -> dict[str, int]:
    """Bytes of each tensor on disk."""
    return {
        name: numel(source.shape) * stored_dtype(source, dtype).itemsize
        for name, source in tensors.items()
    }


def stored_dtype(source: TensorSource, dtype: torch.dtype | None) -> torch.dtype:
    """``dtype`` for floating-point tensors, their own where it is ``None`` and for all others."""
    return dtype if dtype is not None and source.dtype.is_floating_point else source.dtype


def write_weights(
    tensors: Mapping[str, TensorSource],
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write safetensors files and, if there are several, their index; read them back and compare.

    At most one file's tensors are in memory at a time.

    Raises:
        CheckpointError: a value is infinite or not a number, in the source or after conversion, or
            what was written is not what was read.
        ConfigError: the disk has not enough room.
    """
    sizes = stored_bytes(tensors, dtype)
    total, done = sum(sizes.values()), 0
    _require_room(directory, total)
    shards = plan_shards(sizes, max_shard_bytes)
    for file_name, members in shards.items():
        values = {name: materialise(tensors[name], dtype) for name in members}
        write_safetensors(directory / file_name, values)
        del values
        done += sum(sizes[name] for name in members)
        if progress is not None:
            progress(done, total)
    if len(shards) > 1:
        write_index(directory, shards, total)
    verify_weights(tensors, directory, dtype=dtype)


def _require_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ConfigError(
            f"{needed / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB are free",
            where=str(directory.parent),
            fix="Make room or choose another disk.",
        )


def materialise(source: TensorSource, dtype: torch.dtype | None = None) -> Tensor:
    """Read a tensor whole, converted piece by piece.

    Raises:
        CheckpointError: a value is infinite or not a number.
    """
    value = torch.empty(source.shape, dtype=stored_dtype(source, dtype))
    flat = value.view(-1)
    for start, stop in pieces(0, flat.numel()):
        piece = flat[start:stop]
        piece.copy_(source.read(start, stop))
        if piece.is_floating_point() and not _is_finite(piece):
            overflow = "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"
            raise CheckpointError(
                f"holds values that are infinite or not a number{overflow}",
                where=source.where,
                fix="Use an earlier checkpoint, or a dtype with more range.",
            )
    return value


def _is_finite(piece: Tensor) -> bool:
    # PyTorch looks into no number of 8 bits.
    wide = piece.float() if piece.element_size() == 1 else piece
    return bool(torch.isfinite(wide).all())


def verify_weights(
    tensors: Mapping[str, TensorSource], path: Path, *, dtype: torch.dtype | None = None
) -> dict[str, TensorSource]:
    """Read back what was written and compare every bit with its source.

    Merged weights are compared with base and adapter instead (:func:`check_merged_weight`).

    Args:
        tensors: what should be there.
        path: a weight file, or a directory of them.
        dtype: that was written.

    Returns:
        The tensors as they were found.

    Raises:
        CheckpointError: something differs.
    """
    written = open_weights(path)
    if written.keys() != tensors.keys():
        differing = sorted(written.keys() ^ tensors.keys())
        raise CheckpointError(f"other tensors were written: {differing[:5]}", where=str(path))
    generator = torch.Generator().manual_seed(0)
    for name, source in tensors.items():
        found = written[name]
        wanted = (source.shape, stored_dtype(source, dtype))
        if (found.shape, found.dtype) != wanted:
            raise CheckpointError(
                f"is {found.shape} {found.dtype}, wanted {wanted[0]} {wanted[1]}", where=found.where
            )
        if isinstance(source, MergedLoraWeight):
            check_merged_weight(source, found, generator)
            continue
        for start, stop in pieces(0, numel(source.shape)):
            if not same_bits(found.read(start, stop), source.read(start, stop).to(found.dtype)):
                raise CheckpointError("was not written as it was read", where=found.where)
    return written


def write_files_beside(
    config: InternVLChatConfig,
    source: Path,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    llm: Path | None = None,
    tokenizer: Any = None,
) -> None:
    """Write configuration, model code, tokenizer and image preprocessing of a chat checkpoint.

    Args:
        config: of the new checkpoint.
        source: checkpoint whose image preprocessing goes along.
        directory: of the new checkpoint.
        dtype: of its weights, if another than ``config`` says.
        llm: checkpoint whose generation settings and sentencepiece model go along, the source by
            default.
        tokenizer: in place of the source's.
    """
    write_companions(config, tokenizer or load_tokenizer(str(source)), directory, dtype=dtype)
    known = find_companion(source, PREPROCESSOR_NAME)  # an adapter's may be its base's
    copy_companion(known.parent, directory, PREPROCESSOR_NAME)
    copy_language_files(source if llm is None else llm, directory)
    processor = directory / PREPROCESSOR_NAME
    values = read_json(processor)
    if values.get("size") != config.image_size and isinstance(values.get("size"), int):
        values["size"] = values["crop_size"] = config.image_size
        write_json(processor, values)


def copy_language_files(source: Path, directory: Path) -> None:
    """Copy generation settings, and the sentencepiece model for programs that read nothing else."""
    for name in (GENERATION_NAME, sentencepiece_files.MODEL_NAME):
        copy_companion(source, directory, name)


def base_of_adapter(checkpoint: str) -> str | None:
    """Folder of an adapter's base; ``None`` for a checkpoint that is none."""
    directory = Path(checkpoint)
    return str(resolve_adapter_base(directory)) if is_adapter(directory) else None


def write_provenance(merged: MergedCheckpoint, directory: Path, command: str, **facts: Any) -> None:
    """Note what was done to a checkpoint, after what had been done to it before.

    Args:
        merged: the checkpoint.
        directory: of the new one.
        command: what was done.
        **facts: about it, for JSON.
    """
    add_provenance(directory, merged.history, merged.where, command, **facts)


def add_provenance(
    directory: Path, history: Iterable[Mapping[str, Any]], where: str, command: str, **facts: Any
) -> None:
    """As :func:`write_provenance`, of a checkpoint that is told by its history and its name."""
    entry = {"command": command, "version": __version__, "checkpoint": where, **facts}
    write_json(directory / PROVENANCE_NAME, {"history": [*history, entry]})
