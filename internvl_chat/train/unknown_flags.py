"""What is told of a word that is no flag of ``train``: its name here, or the nearest there is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from internvl_chat.model.suggestions import suggest
from internvl_chat.train.argument_file import FILE_SUFFIXES, SECTIONS, Written

_WHAT_TRAINS: Final = "--use_llm_lora RANK for LoRA, --use_llm_lora 0 for the whole LLM"
_BY_WORD: Final[Mapping[str, str]] = {
    "--model_name_or_path": (
        "model model_id model_id_or_path model_path adapters adapter_name_or_path"
    ),
    "--meta_path": "dataset dataset_name dataset_dir data_path train_file",
    "--eval_meta_path": "val_dataset eval_dataset validation_file",
    "--val_split": "split_dataset_ratio val_size",
    "--max_samples": "max_train_samples",
    "--max_seq_length": "cutoff_len max_length model_max_length max_seq_len",
    "--conv_style": "template chat_template",
    "--use_packed_ds True": "packing",
    "--attn_implementation": "attn_impl flash_attn",
    "--freeze_backbone": "freeze_vit freeze_vision_tower",
    "--freeze_mlp": "freeze_aligner freeze_multi_modal_projector freeze_mm_mlp_adapter",
    "--freeze_llm": "freeze_language_model",
    _WHAT_TRAINS: "finetuning_type train_type tuner_type use_peft lora_enable sft_type",
    "--use_llm_lora": "lora_r lora_rank r",
    "--lora_target_modules": "lora_target target_modules target_regex",
    "--modules_to_save": "lora_modules_to_save additional_target",
    "--use_rslora": "use_rank_stabilized_lora",
    "--load_in_4bit True": (
        "quantization_bit quant_bits quant_method bits use_bnb_nested_quant double_quantization "
        "bnb_4bit_use_double_quant"
    ),
    "--vision_lr": "vit_lr mm_vision_tower_lr",
    "--mlp_lr": "aligner_lr mm_projector_lr",
    "--vit_layer_decay_rate": "layer_decay",
    "--learning_rate": "lr",
    "--num_train_epochs": "epochs num_epochs",
    "--per_device_train_batch_size": "batch_size micro_batch_size train_batch_size",
    "--early_stopping_patience": "early_stop_interval early_stopping_steps",
}
"""Name here -> the names of ms-swift, LLaMA-Factory, TRL, LLaVA and BEiT."""


def _by_their_name() -> dict[str, str]:
    return {f"--{theirs}": ours for ours, names in _BY_WORD.items() for theirs in names.split()}


def unknown_problem(one: Written, flag: str, known: Sequence[str]) -> str:
    """A sentence about a flag that does not exist.

    Args:
        one: as it was written.
        flag: its name, in today's spelling.
        known: all flags that exist.
    """
    name, in_file = flag.removeprefix("--"), bool(one.where)
    if flag in ("--config", "--config_file", "--yaml"):
        return f"unknown argument {flag}. A run file is the first word: train run.yaml --seed 3"
    if in_file and name in SECTIONS:
        return f"{name}: is a section of a run file, and holds arguments below it."
    ours = _by_their_name().get(flag)
    if ours is not None:
        return f"unknown argument {flag}: it is {ours} here."
    hint = suggest(flag, known, write=str)
    if one.values and one.values[0].startswith("{"):
        hint = suggest(name, SECTIONS, write="{}:".format) or hint
        sections = ", ".join(SECTIONS)
        return f"unknown argument {flag}, and no section of a run file ({sections}). {hint}".strip()
    return f"unknown argument {flag}. {hint or 'See --help and --help-all.'}"


def stray_problem(values: Sequence[str]) -> str:
    """A sentence about words that stand before any flag."""
    text = f"{' '.join(values)!r} stands before any --argument"
    if os.path.isfile(values[0]):
        return f"{text}. A run file's name ends in {', '.join(FILE_SUFFIXES)}"
    return text
