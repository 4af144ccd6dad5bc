"""A checkpoint of any shape with random bf16 weights, at the speed of the disk.

No module is built: names and shapes are those of the model on the meta device, and the bytes of
one random block, taken from changing places, fill the files in parallel.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .sizes import SIZES, ModelSize, config_of

TOKENIZER = Path(__file__).resolve().parents[2] / "pretrained" / "internvl-chat-tiny"
COMPLETE = "complete"
"""File that is written last."""
SHARD_BYTES = 4_000_000_000
BLOCK_VALUES = 64 * 2**20 + 12_345  # no multiple of a row: rows differ
STANDARD_DEVIATION, LAYER_SCALE = 0.02, 0.1
NORMS = ("norm", "mlp1.0.weight")
Tensors = Sequence[tuple[str, tuple[int, ...]]]


def make_checkpoint(folder: Path, size: str) -> Path:
    """The checkpoint of a size under ``folder``, written if it is not there; says how long."""
    model_dir = folder / f"model-{size}"
    if (model_dir / COMPLETE).is_file():
        return model_dir
    shutil.rmtree(model_dir, ignore_errors=True)  # of a call that was ended half-way
    start = time.monotonic()
    num_parameters = write_checkpoint(SIZES[size], model_dir)
    (model_dir / COMPLETE).write_text("", "utf-8")
    seconds = time.monotonic() - start
    print(f"{num_parameters / 1e9:.2f} B parameters written in {seconds:.0f} s", file=sys.stderr)
    return model_dir


def write_checkpoint(size: ModelSize, folder: Path) -> int:
    """Write a loadable checkpoint with the tiny model's tokenizer; returns its parameters."""
    from internvl_chat import InternVLChatModel

    config = config_of(size)
    with torch.device("meta"):
        model = InternVLChatModel(config)
    tensors = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
    folder.mkdir(parents=True)
    num_parameters = sum(torch.Size(shape).numel() for _, shape in tensors)
    block = _random_block(min(BLOCK_VALUES, num_parameters))
    shards = _shards(tensors)
    names = [f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
    with ThreadPoolExecutor(8) as pool:
        written = [
            pool.submit(_write_shard, folder / name, shard, block, number)
            for number, (name, shard) in enumerate(zip(names, shards, strict=True))
        ]
        for one in written:
            one.result()
    index = {
        "metadata": {"total_size": 2 * num_parameters},
        "weight_map": {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor, _ in shard
        },
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    config.save_pretrained(folder)
    _copy_tokenizer(folder, size.image_size)
    return num_parameters


def _random_block(num_values: int) -> memoryview:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(num_values, generator=generator) * STANDARD_DEVIATION
    return memoryview(values.to(torch.bfloat16).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _shards(tensors: Tensors) -> list[Tensors]:
    """Tensors in their order, cut where a file would grow beyond ``SHARD_BYTES``."""
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, shape in tensors:
        num_bytes = 2 * torch.Size(shape).numel()
        if shards[-1] and held + num_bytes > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append((name, shape))
        held += num_bytes
    return list(shards)


def _write_shard(path: Path, shard: Tensors, block: memoryview, number: int) -> None:
    """One safetensors file (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard:
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for position, (name, shape) in enumerate(shard):
            constant = _constant(name, shape)
            if constant is None:
                start = 2 * (number * 131 + position * 7919) % len(block)
                _write_block(file, block, start, 2 * torch.Size(shape).numel())
            else:
                filled = torch.full(shape, constant, dtype=torch.bfloat16)
                file.write(filled.view(torch.uint8).numpy().tobytes())


def _constant(name: str, shape: tuple[int, ...]) -> float | None:
    """Value of norms and layer scales, without which a deep random model overflows."""
    if len(shape) != 1 or name.endswith("bias"):
        return None
    if name.endswith((".ls1", ".ls2")):
        return LAYER_SCALE
    return 1.0 if any(word in name for word in NORMS) else None


def _write_block(file: BinaryIO, block: memoryview, start: int, num_bytes: int) -> None:
    while num_bytes:
        part = block[start : start + num_bytes]
        file.write(part)
        num_bytes -= len(part)
        start = 0


def _copy_tokenizer(folder: Path, image_size: int) -> None:
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    values = json.loads((TOKENIZER / "preprocessor_config.json").read_text("utf-8"))
    for key in ("crop_size", "size"):
        if isinstance(values.get(key), dict):
            values[key] = dict.fromkeys(values[key], image_size)
        elif key in values:
            values[key] = image_size
    (folder / "preprocessor_config.json").write_text(json.dumps(values), "utf-8")
