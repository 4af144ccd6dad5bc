"""Load a checkpoint as the runner asks it."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import torch

from internvl_chat.chat.loading import default_dtype, load_model
from internvl_chat.chat.media import image_config_of
from internvl_chat.checkpoint.load import require_complete
from internvl_chat.checkpoint.skeleton import skeleton_of
from internvl_chat.checkpoint.sources import read_chat_config
from internvl_chat.data.processes import own_cores
from internvl_chat.evaluation.generate import ModelAnswerer
from internvl_chat.evaluation.pixels import TileRule
from internvl_chat.evaluation.settings import RunSettings
from internvl_chat.evaluation.shared_weights import shared_weights
from internvl_chat.train.distributed import DistributedState, agree

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def count_parameters(checkpoint: str) -> int:
    """Logical parameters of a checkpoint, however its weights are stored; reads no weight."""
    total = 0
    for shape in skeleton_of(read_chat_config(checkpoint)).shapes.values():
        total += int(torch.Size(shape).numel())
    return total


def open_model(settings: RunSettings, state: DistributedState) -> ModelAnswerer:
    """Load the model on this rank.

    Weights are mapped and go to the device tensor by tensor; on a CPU the ranks of a machine share
    one copy (:mod:`~internvl_chat.evaluation.shared_weights`).
    """
    _share_threads(state)
    agree(state, lambda: require_complete(settings.directory))
    if state.is_main:
        _tell_of_tiling(settings)
    placement = _placement(settings, state)
    dtype = placement["dtype"] or default_dtype(state.device)
    with shared_weights(settings.directory, dtype, state) as path:
        model, tokenizer = agree(state, lambda: load_model(path, **placement))
    images = image_config_of(model.config)
    rule = TileRule(
        side=images.image_size,
        max_tiles=settings.most_tiles,
        has_thumbnail=bool(model.config.use_thumbnail),
        normalize_type=images.normalize_type,
        decode=replace(images.decode, image_backend="pillow"),  # every pixel, whatever trained it
    )
    return ModelAnswerer(model, tokenizer, rule, settings.seed)


def _tell_of_tiling(settings: RunSettings) -> None:
    """As in the original, ``--dynamic`` alone decides: say where training did otherwise."""
    tiles = bool(read_chat_config(settings.directory).dynamic_image_size)
    if tiles and not settings.dynamic:
        logger.warning(
            "the checkpoint was trained on tiles; it is asked with whole images: --dynamic"
        )
    elif settings.dynamic and not tiles:
        logger.warning(
            "--dynamic goes before the checkpoint, which was trained on whole images: they are cut "
            "into tiles"
        )


def _placement(settings: RunSettings, state: DistributedState) -> dict[str, Any]:
    """Keywords of ``load_model``."""
    options: dict[str, Any] = {
        "dtype": DTYPES[settings.dtype] if settings.dtype else None,
        "compile": settings.compile,
    }
    if settings.load_in_8bit:
        options["load_in_8bit"] = True
    if settings.load_in_4bit:
        options["load_in_4bit"] = True
    if settings.spread and torch.cuda.device_count() > 1 and state.device.type == "cuda":
        return {**options, "gpus": torch.cuda.device_count()}
    return {**options, "device": state.device}


def _share_threads(state: DistributedState) -> None:
    """On a CPU the ranks of a machine share its cores."""
    if state.device.type == "cpu" and state.world_size > 1:
        on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", state.world_size))
        torch.set_num_threads(max(1, own_cores() // on_this_node))
