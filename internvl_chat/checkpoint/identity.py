"""What a model's files hold, in a short text by which two runs can be compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from internvl_chat.checkpoint.hub import files_read
from internvl_chat.checkpoint.hub_names import name_of_snapshot
from internvl_chat.checkpoint.sources import ADAPTER_CONFIG_NAME, resolve_adapter_base
from internvl_chat.errors import CheckpointError
from internvl_chat.files import sampled_content

_WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".model"}
_OF_TRAINING = {"optimizer.pt", "scheduler.pt", "trainable_weights.pt", "training_args.bin"}
_SMALL_FILES = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
}


def model_identity(path: str | os.PathLike[str]) -> str | None:
    """Digest of weights (sampled), configuration and tokenizer, an adapter's base included.

    Of a model in the hub's cache the same as of a copy of it.

    Args:
        path: a checkpoint's directory, or a file of weights.

    Returns:
        None where the files cannot be read: loading says why.
    """
    digest = hashlib.sha256()
    try:
        for file in _files(Path(path)):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            for chunk in sampled_content(file):
                digest.update(chunk)
    except (OSError, CheckpointError):
        return None
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    files = sorted(path.iterdir())
    if name_of_snapshot(path) is not None:
        read = files_read(path)
        files = [file for file in files if file.name in read]
    for file in files:
        is_weights = file.suffix in _WEIGHTS and file.name not in _OF_TRAINING
        is_weights = is_weights and not file.name.startswith("rng_state")
        if (is_weights or file.name in _SMALL_FILES) and file.is_file():
            yield file
    if (path / ADAPTER_CONFIG_NAME).is_file():
        yield from _files(resolve_adapter_base(path))
