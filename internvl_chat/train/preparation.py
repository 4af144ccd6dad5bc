"""What a run knows before a weight is read: tokenizer, the model's inspection, the datasets."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from internvl_chat.checkpoint.artifacts import decode_config_of
from internvl_chat.checkpoint.load import LoadPlan, inspect_checkpoint
from internvl_chat.checkpoint.tokenizer import (
    add_special_tokens,
    check_template_tokens,
    load_tokenizer,
)
from internvl_chat.config import BuildConfig, DataConfig, DecodeConfig
from internvl_chat.data.build import (
    build_eval_dataset,
    build_split_datasets,
    build_train_dataset,
)
from internvl_chat.data.dataset import SftDataset
from internvl_chat.data.held_out import HeldOutRecord
from internvl_chat.train.arguments import (
    build_config,
    data_config,
    held_out_config,
)
from internvl_chat.train.attention import choose_attention
from internvl_chat.train.distributed import DistributedState
from internvl_chat.train.inherited import log_contradictions, system_message_of
from internvl_chat.train.parsing import RunArguments
from internvl_chat.train.trainer_arguments import TrainArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """Everything that can fail cheaply, done."""

    tokenizer: Any
    num_new_tokens: int
    build: BuildConfig
    plan: LoadPlan
    train: SftDataset
    evaluation: SftDataset | None
    attention: str
    """Name of the LLM's kernel."""
    attention_reason: str
    is_split: bool
    """The held-out records are a part of the training data's."""

    def held_out_records(self) -> list[HeldOutRecord]:
        """What is held out of the training data; empty where nothing is."""
        if not self.is_split or self.evaluation is None:
            return []
        return self.evaluation.held_out_records()


def prepare_run(args: RunArguments, state: DistributedState) -> PreparedRun:
    """Load the tokenizer, inspect the checkpoint, index and count the data.

    Raises:
        UserError: a file is missing or wrong, or two of them do not fit each other.
    """
    checkpoint = args.model.model_name_or_path
    if state.is_main:
        log_contradictions(checkpoint, args.given)
    chosen = choose_attention(
        args.model.attn_implementation,
        packed=args.data.use_packed_ds,
        device=state.device,
        half_precision=args.train.bf16 or args.train.fp16,
    )
    kernels = {"": chosen.vision, "vision_config": chosen.vision, "llm_config": chosen.llm}
    build = build_config(
        args.model,
        args.data,
        dtype=weight_dtype(args.train),
        frozen_dtype=frozen_dtype(args.train),
        attn_implementation=kernels,
        seed=args.train.seed,
    )
    tokenizer = load_tokenizer(
        build.source.tokenizer_path,
        use_fast=args.model.use_fast_tokenizer,
        max_seq_length=args.data.max_seq_length,
    )
    num_new_tokens = add_special_tokens(tokenizer)
    check_template_tokens(tokenizer, build.shape.template)
    plan = inspect_checkpoint(build, tokenizer, num_new_tokens=num_new_tokens)
    if state.is_main:
        _tell_of_other_decoding(build.source.model_name_or_path, build.images.decode)
    train, evaluation = _datasets(args, state, plan, tokenizer)
    return PreparedRun(
        tokenizer=tokenizer,
        num_new_tokens=num_new_tokens,
        build=build,
        plan=plan,
        train=train,
        evaluation=evaluation,
        attention=chosen.llm,
        attention_reason=chosen.reason,
        is_split=held_out_config(args.data) is not None,
    )


def _datasets(
    args: RunArguments, state: DistributedState, plan: LoadPlan, tokenizer: Any
) -> tuple[SftDataset, SftDataset | None]:
    """The records to train on, and the held-out ones if there are any."""
    system_message = system_message_of(args.model.model_name_or_path)

    def records_of(meta_path: str | None) -> DataConfig:
        return data_config(
            args.data,
            num_image_token=plan.config.num_image_token,
            meta_path=meta_path,
            system_message=system_message,
        )

    config, held_out_part = records_of(args.data.meta_path), held_out_config(args.data)
    where, seed = args.train.output_dir, data_seed(args.train)
    if held_out_part is not None:
        return build_split_datasets(
            config, held_out_part, tokenizer, output_dir=where, seed=seed, is_main=state.is_main
        )
    train = build_train_dataset(
        config, tokenizer, output_dir=where, seed=seed, is_main=state.is_main
    )
    if not args.data.eval_meta_path:
        return train, None
    held_out = records_of(args.data.eval_meta_path)
    return train, build_eval_dataset(held_out, tokenizer, is_main=state.is_main)


def _tell_of_other_decoding(checkpoint: str | None, decode: DecodeConfig) -> None:
    """A run goes by its own rule, which its checkpoints then carry."""
    if checkpoint is None:
        return
    known, chosen = decode_config_of(Path(checkpoint)).stored(), decode.stored()
    changed = [
        f"{name} {known[name]} -> {chosen[name]}" for name in known if known[name] != chosen[name]
    ]
    if changed:
        logger.info(
            "image files become RGB by another rule than that of %s: %s. The new checkpoints' "
            "preprocessor_config.json says so (docs/data.md)",
            checkpoint,
            ", ".join(changed),
        )


def weight_dtype(args: TrainArguments) -> torch.dtype:
    """Dtype of the weights that train.

    DeepSpeed keeps fp32 masters itself, so under it weights are in the dtype of the computation;
    without it they are the masters, and autocast computes in bf16.
    """
    if args.deepspeed and args.bf16:
        return torch.bfloat16
    if args.deepspeed and args.fp16:
        return torch.float16
    return torch.float32


def frozen_dtype(args: TrainArguments) -> torch.dtype:
    """Dtype of the weights that do not train: that of the computation, as nothing is added to them.

    Under ``--fp16`` without DeepSpeed it is fp32: its range is too small for what the vision tower
    and the language model add up from block to block.
    """
    # accelerate's environment may bring DeepSpeed, too.
    under_deepspeed = args.deepspeed or getattr(args, "deepspeed_plugin", None)
    return torch.bfloat16 if args.bf16 and not under_deepspeed else weight_dtype(args)


def data_seed(args: TrainArguments) -> int:
    """Seed of the data order and of augmentation."""
    return args.seed if args.data_seed is None else args.data_seed
