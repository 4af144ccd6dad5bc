"""Weight files, read by name and by range: headers first, values later and only the part asked for.

safetensors files are read with ``pread`` instead of a memory map: a rank that wants a sixteenth of
a tensor reads just those bytes, straight into the memory that keeps them, and no mapped pages add
to its resident size. Layout: https://huggingface.co/docs/safetensors (8 bytes little-endian header
length, JSON header, then the tensors, row-major).
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from internvl_chat.errors import CheckpointError
from internvl_chat.files import open_to_readers_of_folder

SAFETENSORS_NAME = "model.safetensors"
SAFETENSORS_INDEX_NAME = "model.safetensors.index.json"
TORCH_NAME = "pytorch_model.bin"
TORCH_INDEX_NAME = "pytorch_model.bin.index.json"

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100 * 1024 * 1024
_CHUNK_ELEMENTS = 1 << 20


class TensorSource(Protocol):
    """One tensor somewhere: its shape is known now, its values when asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def where(self) -> str:
        """File and name, for messages."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Elements ``start:stop`` of the flattened (row-major) tensor, 1-D, on the CPU."""
        ...


def numel(shape: Iterable[int]) -> int:
    """Number of elements of a shape (1 for a scalar)."""
    count = 1
    for size in shape:
        count *= size
    return count


@dataclass(frozen=True)
class SafetensorsTensor:
    """A tensor in a safetensors file."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    @property
    def where(self) -> str:
        return f"{self.path}: {self.name}"

    def read(self, start: int, stop: int) -> Tensor:
        values = torch.empty(stop - start, dtype=self.dtype)
        if stop > start:
            self._read_into(values, self.offset + start * self.dtype.itemsize)
        return values

    def _read_into(self, values: Tensor, position: int) -> None:
        buffer = memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]
        with open(self.path, "rb", buffering=0) as file:
            done = 0
            while done < len(buffer):
                # One call moves at most 2 GiB on Linux.
                count = os.preadv(file.fileno(), [buffer[done:]], position + done)
                if count == 0:
                    raise CheckpointError(
                        f"the file ends inside this tensor ({done} of {len(buffer)} bytes)",
                        where=self.where,
                        fix="Copy or download the file again.",
                    )
                done += count


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor already at hand: from a ``.pth`` file, computed, or in a test."""

    where: str
    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def read(self, start: int, stop: int) -> Tensor:
        return self.value.reshape(-1)[start:stop]


def read_safetensors_header(path: Path) -> dict[str, SafetensorsTensor]:
    """Names, shapes and places of the tensors of one file; reads no tensor.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER_BYTES + 1
            if length > min(size, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"not a safetensors file ({size} bytes, header length {length})",
                    where=str(path),
                    fix=_fetch_hint(head),
                )
            header = json.loads(file.read(length))
    except OSError as err:
        raise CheckpointError(
            f"cannot be read ({err.strerror})", where=str(path), fix="Check the path."
        ) from err
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"its header is no JSON ({err})", where=str(path)) from err
    if not isinstance(header, dict):
        raise CheckpointError("its header is no JSON object", where=str(path))
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, info, 8 + length) for name, info in header.items()}
    end = max((_end(tensor) for tensor in tensors.values()), default=0)
    if end > size:
        raise CheckpointError(
            f"truncated: {size} bytes where its header promises {end}",
            where=str(path),
            fix="Copy or download the file again.",
        )
    return tensors


def _entry(path: Path, name: str, info: object, data_start: int) -> SafetensorsTensor:
    known = info if isinstance(info, dict) else {}
    dtype, shape, offsets = known.get("dtype"), known.get("shape"), known.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"cannot read dtype {dtype!r}", where=f"{path}: {name}")
    sizes, places = _whole_numbers(shape), _whole_numbers(offsets)
    if sizes is None or places is None or len(places) != 2:
        raise CheckpointError("its header tells no shape and place", where=f"{path}: {name}")
    entry = SafetensorsTensor(path, name, _DTYPES[dtype], sizes, data_start + places[0])
    if _end(entry) != data_start + places[1]:
        raise CheckpointError("its header contradicts itself", where=entry.where)
    return entry


def _whole_numbers(values: object) -> tuple[int, ...] | None:
    if not isinstance(values, list) or any(type(n) is not int or n < 0 for n in values):
        return None
    return tuple(values)


def _end(tensor: SafetensorsTensor) -> int:
    return tensor.offset + numel(tensor.shape) * tensor.dtype.itemsize


def _fetch_hint(head: bytes) -> str:
    if head.startswith(b"version "):
        return "This is a git-lfs pointer: run `git lfs pull` or download the file itself."
    return "Download the file again."


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, contiguous and on the CPU, to a file that its folder's readers may read."""
    save_file(tensors, path, metadata={"format": "pt"})
    open_to_readers_of_folder(path)  # safetensors makes its files private to the user


def read_torch_file(path: Path) -> dict[str, MemoryTensor]:
    """The tensors of a ``.bin``/``.pth`` file, mapped so that values are read when used.

    Only plain tensors are unpickled (``weights_only=True``): such a file can run no code.

    Raises:
        CheckpointError: the file is missing, holds other objects, or is no state dict.
    """
    try:
        state = _torch_load(path)
    except OSError as err:
        raise CheckpointError(
            f"cannot be read ({err.strerror})", where=str(path), fix="Check the path."
        ) from err
    except (pickle.UnpicklingError, RuntimeError, EOFError) as err:
        reason = str(err).split("\n", 1)[0]
        raise CheckpointError(
            f"no plain PyTorch state dict ({reason})",
            where=str(path),
            fix="Save it as a flat dict of tensors, better as .safetensors.",
        ) from err
    for key in ("state_dict", "module", "model"):  # wrappers that training scripts put around it
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError("holds no flat dict of tensors", where=str(path))
    return {str(name): MemoryTensor(f"{path}: {name}", value) for name, value in state.items()}


def _torch_load(path: Path) -> object:
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    # Files of torch < 1.6 cannot be mapped: they are read whole.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def open_weights(path: Path) -> dict[str, TensorSource]:
    """All tensors of a weight file or of a checkpoint directory; safetensors are preferred.

    Args:
        path: a ``.safetensors``/``.bin``/``.pth``/``.pt`` file, or a directory with one of them
            or with shards and their index.

    Raises:
        CheckpointError: nothing to read there, a listed shard is missing, or a broken file.
    """
    if path.is_file():
        return _open_file(path)
    for index_name, single_name in (
        (SAFETENSORS_INDEX_NAME, SAFETENSORS_NAME),
        (TORCH_INDEX_NAME, TORCH_NAME),
    ):
        if (path / index_name).is_file():
            return _open_shards(path / index_name, single_name)
        if (path / single_name).is_file():
            return _open_file(path / single_name)
    problem = "has no weights" if path.is_dir() else "does not exist"
    raise CheckpointError(
        problem,
        where=str(path),
        fix=f"Expected {SAFETENSORS_NAME}, {TORCH_NAME} or shards with their index.",
    )


def _open_file(path: Path) -> dict[str, TensorSource]:
    if path.suffix == ".safetensors":
        return dict(read_safetensors_header(path))
    return dict(read_torch_file(path))


def _open_shards(index: Path, single_name: str) -> dict[str, TensorSource]:
    """The tensors of all shards.

    Args:
        index: which tensor is in which file.
        single_name: of the file that would hold all of them. Programs disagree on which of the
            two to read, so a folder with both has no one content.
    """
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"no index of shards ({err})", where=str(index)) from err
    if (index.parent / single_name).is_file() and single_name not in shards:
        raise CheckpointError(
            f"has two sets of weights: {single_name}, and the {len(shards)} files of {index.name}",
            where=str(index.parent),
            fix="Move the set away that does not belong there; some programs read one, some the "
            "other.",
        )
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} weight files are missing: {listed(missing)}",
            where=str(index.parent),
            fix="Download them again.",
        )
    tensors: dict[str, TensorSource] = {}
    for shard in shards:
        found = _open_file(index.parent / shard)
        for twice in sorted(found.keys() & tensors.keys()):
            if _same_values(found[twice], tensors[twice]):
                continue
            raise CheckpointError(
                f"two weight files hold {twice} with different values: {shard} is one",
                where=str(index.parent),
                fix="Download them again, or write them again.",
            )
        tensors |= found
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise CheckpointError(
            f"the index names tensors that no file holds: {listed(absent)}", where=str(index)
        )
    return tensors


def _same_values(first: TensorSource, second: TensorSource) -> bool:
    if first.shape != second.shape:
        return False
    count = numel(first.shape)
    stops = (
        (start, min(start + _CHUNK_ELEMENTS, count)) for start in range(0, count, _CHUNK_ELEMENTS)
    )
    return all(
        first.read(start, stop).double().equal(second.read(start, stop).double())
        for start, stop in stops
    )


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two 1-D tensors of one dtype are equal, of 8 bits too, which PyTorch compares not."""
    if first.element_size() == 1:
        return first.view(torch.uint8).equal(second.view(torch.uint8))
    return first.equal(second)


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
