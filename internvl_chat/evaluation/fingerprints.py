"""What a run's answers depend on, as short texts that can be compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from internvl_chat.checkpoint.hub import files_read
from internvl_chat.checkpoint.hub_names import name_of_snapshot
from internvl_chat.checkpoint.sources import resolve_adapter_base
from internvl_chat.evaluation.sources import EncodedImage
from internvl_chat.evaluation.task import Question
from internvl_chat.files import sampled_content
from internvl_chat.model.adapter import is_adapter

_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt"}
_OF_TRAINING = {
    "run.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "status.json",
    "arguments.json",
    "training_log.txt",
}
"""What a run writes beside its model, and a later start may write again."""


def questions_fingerprint(questions: Sequence[Question], folder: Path) -> str:
    """Of what is asked, in order: ids, prompts and which images, not where the data lies.

    Args:
        questions: all that the run asks.
        folder: that the data lies in; paths below it are taken relative to it.
    """
    digest = hashlib.sha256()
    for one in questions:
        images = [_image_name(source, folder) for source in one.images]
        clip = one.video and [
            _relative(one.video.path, folder),
            one.video.num_segments,
            one.video.bounds,
        ]
        before: list[object] = (
            [one.earlier, one.system_message] if one.earlier or one.system_message else []
        )
        before += [one.max_tiles] if one.max_tiles else []
        digest.update(json.dumps([one.id, one.prompt, images, clip, *before]).encode() + b"\n")
    return digest.hexdigest()


def data_fingerprint(questions: Sequence[Question]) -> str:
    """Of the references: what scoring reads of the data."""
    digest = hashlib.sha256()
    for one in questions:
        text = json.dumps([one.id, dict(one.record)], sort_keys=True, default=str)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def checkpoint_fingerprint(path: str) -> str:
    """Of configuration, tokenizer and weights, an adapter's base included.

    Files above 16 MiB are read in 64 places of 64 KiB, so that 75 GB take no minutes; training
    changes all weights.
    """
    digest = hashlib.sha256()
    directory: Path | None = Path(path)
    while directory is not None:
        read = files_read(directory) if name_of_snapshot(directory) is not None else None
        for file in sorted(directory.iterdir()):
            if read is not None and file.name not in read:
                continue
            if file.suffix in _SUFFIXES and file.name not in _OF_TRAINING and file.is_file():
                digest.update(f"{file.name} {file.stat().st_size}\n".encode())
                for chunk in sampled_content(file):
                    digest.update(chunk)
        directory = resolve_adapter_base(directory) if is_adapter(directory) else None
    return digest.hexdigest()


def _image_name(source: object, folder: Path) -> str:
    if isinstance(source, EncodedImage):
        return hashlib.sha256(source.text.encode()).hexdigest()
    return _relative(str(getattr(source, "label", "")), folder)


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(path, folder) if path.startswith(str(folder)) else path
