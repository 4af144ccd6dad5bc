"""Section ``batches``: the tensors of a training batch and the order of the samples."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from internvl_chat.checkpoint.tokenizer import add_special_tokens
from internvl_chat.config import OrderMode
from internvl_chat.data.build import build_train_dataset
from internvl_chat.data.collate import Collator
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.sampler import Pack, StepBatchSampler
from tests.support.checkpoints import tiny_tokenizer
from tests.support.configs import data_config, order_config
from tests.support.training import IMAGE_SIZE, write_dataset

KINDS = ("text", "image", "two", "rounds", "text", "image")
ORDERED = KINDS * 4 + ("text",)
SIZES = ((90, 40), (28, 28), (30, 95), (64, 48), (120, 33))
"""Width and height of the pictures, one after the other."""
MAX_PACKED_TOKENS = 256

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "tiled": {"dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 4},
    "augmented": {"data_augment": True},
    "square": {"pad2square": True, "normalize_type": "clip"},
    "cut": {"max_seq_length": 60},
}
COLLATORS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packed": True},
    "padded, by sample": {"loss_reduction": "sample"},
    "packed, by square root": {"packed": True, "loss_reduction": "square"},
}


def paint(folder: Path) -> None:
    """Give the pictures of a dataset different sizes and something to see."""
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        width, height = SIZES[number % len(SIZES)]
        y, x = np.mgrid[:height, :width]
        bands = [x * 255 // width, y * 255 // height, (x * (number + 3) + y * y) % 256]
        Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8)).save(path)


def write_painted(directory: Path, kinds: Sequence[str], *, name: str = "shapes") -> Path:
    """As ``write_dataset``, painted."""
    meta = write_dataset(directory, kinds, name=name)
    paint(directory / name)
    return meta


def change_meta(meta: Path, **changes: Any) -> None:
    """Set values in all entries of a meta JSON."""
    entries = json.loads(meta.read_text())
    meta.write_text(json.dumps({name: {**e, **changes} for name, e in entries.items()}))


def batches_section() -> dict[str, Any]:
    """Batches by variant, the small one in full, and orders by mode."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict("os.environ", INTERNVL_CHAT_CACHE=f"{folder}/cache"),
    ):
        return {
            "tensors": {name: _variant(Path(folder) / name, name) for name in VARIANTS},
            "small": _small(Path(folder) / "small"),
            "orders": _orders(Path(folder) / "orders"),
        }


def _dataset(meta: Path, **options: Any) -> SftDataset:
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    values = {
        "meta_path": str(meta),
        "num_image_token": 4,
        "max_seq_length": MAX_PACKED_TOKENS,
        "force_image_size": IMAGE_SIZE,
        **options,
    }
    dataset = build_train_dataset(data_config(**values), tokenizer, output_dir=None, seed=7)
    dataset.set_epoch(0)
    return dataset


def _variant(folder: Path, name: str) -> dict[str, Any]:
    options = dict(VARIANTS[name])
    meta = write_painted(folder, KINDS)
    change_meta(meta, data_augment=options.pop("data_augment", False))
    dataset = _dataset(meta, **options)
    found: dict[str, Any] = {
        "lengths": dataset.lengths.tolist(),
        "tiles": dataset.tiles.tolist(),
    }
    for kind, settings in COLLATORS.items():
        packs = [Pack((number,)) for number in range(len(KINDS) - 1)]
        if settings.get("packed"):
            packs = [Pack((0, 1)), Pack((2, 3)), Pack((4,))]
        packs.append(Pack((len(KINDS) - 1,), padding=True))
        batch = _collated(dataset, packs, **settings)
        found[kind] = {name: describe(value) for name, value in batch.items()}
    return found


def _collated(dataset: SftDataset, packs: list[Pack], **settings: Any) -> dict[str, Any]:
    return Collator(pad_token_id=1, **settings)([dataset[pack] for pack in packs])


def describe(value: Any) -> Any:
    """Dtype, shape and the start of the sha256 of a tensor's bytes; other values as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    digest = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} {digest[:32]}"


def _small(folder: Path) -> dict[str, Any]:
    dataset = _dataset(write_painted(folder, ("text", "image")))
    batch = _collated(dataset, [Pack((0,)), Pack((1,))])
    batch.pop("pixel_values")
    return {name: value.tolist() for name, value in batch.items()}


def _orders(folder: Path) -> dict[str, Any]:
    whole = _dataset(write_painted(folder, ORDERED))
    found = {mode: _order(whole, mode) for mode in ("grouped", "random", "packed")}
    both = {}
    for name, kinds, changes in (
        ("first", KINDS, {"repeat_time": 2}),
        ("second", KINDS * 2, {"weight": 3}),
    ):
        meta = write_painted(folder, kinds, name=name)
        change_meta(meta, **changes)
        both |= json.loads(meta.read_text())
    mixed = folder / "mixed.json"
    mixed.write_text(json.dumps(both))
    found["resampled"] = _order(_dataset(mixed, use_data_resampling=True), "grouped")
    found["repeated"] = _order(_dataset(mixed), "random", drop_last=True)
    return found


def _order(dataset: SftDataset, mode: OrderMode, *, drop_last: bool = False) -> dict[str, Any]:
    """By epoch and rank, a micro batch a string: ``1 2+3 4*`` is a sample, a pack, a stand-in."""
    limit = MAX_PACKED_TOKENS if mode == "packed" else None
    found = {}
    for rank in range(2):
        sampler = StepBatchSampler(
            lambda epoch: dataset.plan(
                epoch,
                global_batch_size=8,
                order=order_config(mode, max_packed_tokens=limit, drop_last=drop_last),
            ),
            rank=rank,
            world_size=2,
            micro_batch_size=2,
            accumulation=2,
        )
        for epoch in range(2):
            sampler.set_epoch(epoch)
            found[f"epoch {epoch} rank {rank}"] = [" ".join(map(_word, batch)) for batch in sampler]
    return found


def _word(pack: Pack) -> str:
    return "+".join(map(str, pack.indices)) + "*" * pack.padding
