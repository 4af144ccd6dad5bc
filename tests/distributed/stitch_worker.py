"""One rank of ``test_stitch_zero3.py``: load in parts under ZeRO-3, compare, save.

torchrun … stitch_worker.py DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.integrations import HfDeepSpeedConfig

from internvl_chat.checkpoint.load import build_model
from internvl_chat.checkpoint.lora import apply_freezing_and_lora, trainable_table
from internvl_chat.checkpoint.manifest import Peers, atomic_directory
from internvl_chat.checkpoint.partition import (
    gathered_tensors,
    is_partitioned,
    parameters_and_buffers,
)
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer
from internvl_chat.config import BuildConfig
from internvl_chat.costs.parameters import full_numel
from internvl_chat.errors import CheckpointError
from internvl_chat.model import InternVLChatModel
from tests.support.checkpoints import config_for, stitch_config

LORA: dict[str, Any] = {
    "use_llm_lora": 4,
    "use_backbone_lora": 2,
    "freeze_llm": True,
    "freeze_backbone": True,
}


def zero3(dtype: torch.dtype) -> HfDeepSpeedConfig:
    """Announce ZeRO-3 to transformers for as long as the result lives, as TrainingArguments do."""
    return HfDeepSpeedConfig(
        {
            "zero_optimization": {"stage": 3},
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": dtype == torch.bfloat16},
        }
    )


def same_as_plain_load(build: BuildConfig, tokenizer: Any, new: int) -> InternVLChatModel:
    """Load whole and in parts; every tensor, buffer and dtype must agree."""
    plain = build_model(build, tokenizer, num_new_tokens=new)
    announced = zero3(build.dtype)
    model = build_model(build, tokenizer, num_new_tokens=new)
    del announced
    world = dist.get_world_size()
    held = 0
    for name, parameter in model.named_parameters():
        assert is_partitioned(parameter), name
        assert parameter.numel() == 0, name
        held += parameter.ds_tensor.numel()
    total = sum(full_numel(parameter) for parameter in model.parameters())
    assert total <= world * held <= total + world * len(list(model.parameters()))
    reference = plain.state_dict()
    for name, value in gathered_tensors(parameters_and_buffers(model).items(), keep=True):
        assert value is not None
        assert value.dtype == reference[name].dtype, name
        assert value.equal(reference[name]), name
    buffers = dict(plain.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffer.equal(buffers[name]), name
    apply_freezing_and_lora(model, build.trainable)
    apply_freezing_and_lora(plain, build.trainable)
    assert trainable_table(model) == trainable_table(plain)
    return model


def save(model: InternVLChatModel, tokenizer: Any, target: Path, **options: Any) -> None:
    peers = Peers(dist.get_rank(), dist.get_world_size(), dist.barrier)
    with atomic_directory(target, peers) as staging:
        save_checkpoint_files(model, tokenizer, staging, is_main=peers.is_main, **options)


def main(directory: Path) -> None:
    dist.init_process_group("gloo")
    tokenizer = load_tokenizer(str(directory / "llm"))
    new = add_special_tokens(tokenizer)

    stitched = same_as_plain_load(stitch_config(directory), tokenizer, new)
    save(stitched, tokenizer, directory / "chat", max_shard_bytes=20_000)
    again = same_as_plain_load(config_for(directory / "chat"), tokenizer, 0)
    for (name, one), (_, two) in zip(
        gathered_tensors(parameters_and_buffers(stitched).items(), keep=True),
        gathered_tensors(parameters_and_buffers(again).items(), keep=True),
        strict=True,
    ):
        assert one is not None
        assert two is not None
        assert one.equal(two), name

    half = config_for(directory / "chat", dtype=torch.bfloat16, **LORA)
    adapted = same_as_plain_load(half, tokenizer, 0)
    save(adapted, tokenizer, directory / "adapter")
    continued = config_for(directory / "adapter", dtype=torch.bfloat16, **LORA)
    same_as_plain_load(continued, tokenizer, 0)

    # A wrong tensor fails on every rank alike: no rank is left in a collective.
    stitched.config.llm_config.vocab_size += 1
    try:
        save_checkpoint_files(stitched, tokenizer, directory, is_main=dist.get_rank() == 0)
    except CheckpointError as err:
        problem = err.problem
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if dist.get_rank() == 0:
        table = {row.group: row.trainable for row in trainable_table(adapted)}
        result = {"problems": problems, "trainable": table}
        (directory / "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
