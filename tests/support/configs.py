"""Configs by the flags of a run: what is not given has the flag's default."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from internvl_chat.config import (
    ORDER_RULE,
    BuildConfig,
    DataConfig,
    EncodeConfig,
    ImageConfig,
    MediaConfig,
    OrderConfig,
)
from internvl_chat.train import arguments
from internvl_chat.train.arguments import DataArguments, ModelArguments


def _split(flags: dict[str, Any]) -> tuple[ModelArguments, DataArguments]:
    names = {field.name for field in fields(ModelArguments)}
    model = {name: value for name, value in flags.items() if name in names}
    data = {name: value for name, value in flags.items() if name not in names}
    return ModelArguments(**model), DataArguments(**data)


def build_config(
    *,
    dtype: torch.dtype = torch.float32,
    frozen_dtype: torch.dtype | None = None,
    seed: int = 0,
    kernel: str | None = None,
    **flags: Any,
) -> BuildConfig:
    """What a model is built from; ``kernel`` is its attention."""
    model, data = _split(flags)
    return arguments.build_config(
        model,
        data,
        dtype=dtype,
        frozen_dtype=frozen_dtype,
        attn_implementation=kernel,
        seed=seed,
    )


def image_config(**flags: Any) -> ImageConfig:
    """How an image becomes tiles."""
    return arguments.image_config(DataArguments(**flags))


def media_config(**flags: Any) -> MediaConfig:
    """How image and video files are read."""
    data = DataArguments(**flags)
    return arguments.media_config(data, arguments.image_config(data))


def encode_config(
    *, num_image_token: int, system_message: str | None = None, **flags: Any
) -> EncodeConfig:
    """How conversations become ids."""
    data = DataArguments(**flags)
    return EncodeConfig(
        conv_style=data.conv_style,
        system_message=system_message,
        num_image_token=num_image_token,
        max_seq_length=data.max_seq_length,
    )


def data_config(*, num_image_token: int, **flags: Any) -> DataConfig:
    """Which records, and how they become samples."""
    data = DataArguments(**flags)
    return arguments.data_config(data, num_image_token=num_image_token, meta_path=data.meta_path)


def order_config(mode: str = "random", **limits: Any) -> OrderConfig:
    """How samples are put into batches; limits that are not given are none."""
    none = {"max_packed_tokens": None, "max_packed_tiles": None, "drop_last": False}
    values = {**none, "rule": ORDER_RULE, **limits}
    return OrderConfig(mode=mode, **values)  # type: ignore[arg-type]
