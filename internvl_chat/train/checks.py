"""Contradictions among the arguments, found before a weight is read. Returns all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from internvl_chat.model.configuration_internvl_chat import image_size_unit
from internvl_chat.model.conversation import TEMPLATES
from internvl_chat.model.suggestions import suggest
from internvl_chat.train.attention import choose_attention, flash_attention_problem

Values = dict[str, Any]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def find_problems(values: Values, device: torch.device) -> list[str]:
    """Check values by name, each other and against the files they name.

    Args:
        values: argument name -> value, defaults filled in.
        device: what the run will compute on.

    Returns:
        One sentence or two per problem, with the mend; empty if there is none.
    """
    checks: tuple[Callable[[Values], Iterator[str]], ...] = (
        _sources,
        _trainable,
        _data,
        _numbers,
        _vision,
        _output,
        _deepspeed,
        _unsupported,
    )
    problems = [problem for check in checks for problem in check(values)]
    return problems + list(_hardware(values, device))


def _sources(values: Values) -> Iterator[str]:
    whole = values["model_name_or_path"]
    parts = {name: values[name] for name in ("vision_path", "llm_path", "mlp_path")}
    given = [f"--{name}" for name, path in parts.items() if path]
    if whole and given:
        yield (
            f"--model_name_or_path is a whole model, yet {' and '.join(given)} given too. "
            "Give one or the other."
        )
    if not whole and not given:
        yield (
            "no model: give --model_name_or_path, or --vision_path and --llm_path (and --mlp_path)."
        )
    elif not whole:
        for name in ("vision_path", "llm_path"):
            if not parts[name]:
                yield f"--{name} is missing: a model is stitched from a vision tower and an LLM."
    for name in ("model_name_or_path", "vision_path", "llm_path"):
        path = values[name]
        if path and not (Path(path) / "config.json").is_file():
            what = "no config.json in it" if Path(path).is_dir() else "no such directory"
            yield f"--{name} {path}: {what}. Download the checkpoint first or correct the path."
        elif path and name != "vision_path" and not _has_tokenizer(Path(path)):
            yield (
                f"--{name} {path}: no tokenizer in it (looked for {', '.join(TOKENIZER_FILES)}). "
                "Copy the tokenizer's files there."
            )
    if values["mlp_path"] and not Path(values["mlp_path"]).is_file():
        yield f"--mlp_path {values['mlp_path']}: no such file."


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _trainable(values: Values) -> Iterator[str]:
    for rank, frozen in (("use_llm_lora", "freeze_llm"), ("use_backbone_lora", "freeze_backbone")):
        if values[rank] < 0:
            yield f"--{rank} {values[rank]}: a rank is 0 (none) or more."
        if values[rank] and not values[frozen]:
            yield (
                f"--{rank} {values[rank]} on weights that train themselves. Add --{frozen} True, "
                f"or drop --{rank}."
            )
    frozen_all = values["freeze_llm"] and values["freeze_mlp"] and values["freeze_backbone"]
    extras = ("use_llm_lora", "use_backbone_lora", "unfreeze_vit_layers", "unfreeze_lm_head")
    if frozen_all and not any(values[name] for name in extras):
        yield (
            "nothing trains: LLM, projector and backbone are frozen. Drop one of --freeze_llm, "
            "--freeze_mlp, --freeze_backbone, or add LoRA."
        )
    if values["unfreeze_vit_layers"] and not values["freeze_backbone"]:
        yield (
            "--unfreeze_vit_layers has no effect: the backbone trains whole. Add "
            "--freeze_backbone True or drop it."
        )
    if values["unfreeze_lm_head"] and not values["freeze_llm"]:
        yield (
            "--unfreeze_lm_head has no effect: the LLM trains whole. Add --freeze_llm True or "
            "drop it."
        )


def _data(values: Values) -> Iterator[str]:
    if not values["meta_path"]:
        yield "--meta_path is missing: the JSON that lists the datasets."
    for name in ("meta_path", "eval_meta_path"):
        if values[name] and not Path(values[name]).is_file():
            yield f"--{name} {values[name]}: no such file."
    if values["conv_style"] not in TEMPLATES:
        near = suggest(values["conv_style"], TEMPLATES, cutoff=0.4, write=str)
        known = near or f"Known: {', '.join(TEMPLATES)}."
        yield f"--conv_style {values['conv_style']}: no such template. {known}"
    if values["use_packed_ds"] and values["max_packed_tokens"] < values["max_seq_length"]:
        yield (
            f"--max_packed_tokens {values['max_packed_tokens']} is less than --max_seq_length "
            f"{values['max_seq_length']}: a long sample would fit no pack. Raise the one or lower "
            "the other."
        )
    for low, high in (
        ("min_dynamic_patch", "max_dynamic_patch"),
        ("min_num_frame", "max_num_frame"),
    ):
        if not 1 <= values[low] <= values[high]:
            yield (
                f"--{low} {values[low]} and --{high} {values[high]}: want 1 <= smallest <= largest."
            )
    if values["eval_strategy"] != "no" and not values["eval_meta_path"]:
        yield f"--eval_strategy {values['eval_strategy']} without --eval_meta_path: nothing to use."
    if values["eval_meta_path"] and values["eval_strategy"] == "no" and not values["eval_steps"]:
        yield "--eval_meta_path without --eval_steps: say every how many steps."


def _numbers(values: Values) -> Iterator[str]:
    positive = (
        "max_seq_length",
        "max_packed_tokens",
        "force_image_size",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "max_image_pixels",
        "ddp_timeout",
    )
    for name in positive:
        if values[name] <= 0:
            yield f"--{name} {values[name]}: want a number > 0."
    if not 0 <= values["drop_path_rate"] < 1:
        yield f"--drop_path_rate {values['drop_path_rate']}: want 0 <= rate < 1."
    if not 0 <= values["max_bad_ratio"] <= 1:
        yield f"--max_bad_ratio {values['max_bad_ratio']}: want a share between 0 and 1."
    for name in ("learning_rate", "weight_decay", "warmup_steps", "dataloader_num_workers"):
        if values[name] < 0:
            yield f"--{name} {values[name]}: want a number >= 0."
    if values["num_train_epochs"] <= 0 and values["max_steps"] <= 0:
        yield "neither --num_train_epochs nor --max_steps is positive: nothing to train."


def _vision(values: Values) -> Iterator[str]:
    """The image size must give whole patches, and whole tokens after the pixel shuffle."""
    ratio, size = values["down_sample_ratio"], values["force_image_size"]
    if not 0 < ratio <= 1:
        yield f"--down_sample_ratio {ratio}: want 0 < ratio <= 1."
        return
    vision = _vision_config(values)
    if vision is None or size <= 0:
        return
    patch = int(vision.get("patch_size", 14))
    unit = image_size_unit(patch, ratio)
    if size % unit:
        below = max(size // unit, 1) * unit
        yield (
            f"--force_image_size {size} is no multiple of patch / ratio = {patch} / {ratio:g} = "
            f"{unit}. Nearest that work: {below} or {below + unit}."
        )
    layers = int(vision.get("num_hidden_layers", 48))
    if not -layers - 1 <= values["vision_select_layer"] <= layers:
        yield f"--vision_select_layer {values['vision_select_layer']}: the tower has {layers}."


def _vision_config(values: Values) -> dict[str, Any] | None:
    """The vision tower's config.json; None where the path is wrong, which is reported already."""
    path = Path(values["model_name_or_path"] or values["vision_path"] or "") / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    vision = config.get("vision_config", config) if isinstance(config, dict) else None
    return vision if isinstance(vision, dict) else None


def _output(values: Values) -> Iterator[str]:
    if not values["output_dir"]:
        yield "--output_dir is missing: where checkpoints and logs go."
    elif Path(values["output_dir"]).is_file():
        yield f"--output_dir {values['output_dir']}: a file of this name exists."


def _deepspeed(values: Values) -> Iterator[str]:
    config = values["deepspeed"]
    if not isinstance(config, str) or config.startswith("{"):
        return
    try:
        loaded = json.loads(Path(config).read_text("utf-8"))
    except OSError as err:
        yield f"--deepspeed {config}: cannot be read ({err.strerror})."
    except ValueError as err:
        yield f"--deepspeed {config}: not JSON ({err})."
    else:
        if not isinstance(loaded, dict):
            yield f"--deepspeed {config}: want a JSON object."


def _unsupported(values: Values) -> Iterator[str]:
    """transformers' options that would be silently wrong or without effect here."""
    if values["fp16"] and values["bf16"]:
        yield "both --fp16 and --bf16. Give one."
    if values["fsdp"]:
        yield "--fsdp is not supported. Shard with --deepspeed and a ZeRO-3 file."
    if values["auto_find_batch_size"]:
        yield "--auto_find_batch_size would change the global batch. Set the batch sizes."
    if values["label_smoothing_factor"]:
        yield "--label_smoothing_factor is not supported by the chunked vocabulary loss. Drop it."
    if values["use_liger_kernel"]:
        yield "--use_liger_kernel: the vocabulary loss is chunked already. Drop it."
    if values["push_to_hub"]:
        yield "--push_to_hub is not supported. Upload OUTPUT_DIR when training has ended."
    if values["train_sampling_strategy"] not in ("random", "group_by_length"):
        yield (
            f"--train_sampling_strategy {values['train_sampling_strategy']}: want random or "
            "group_by_length."
        )


def _hardware(values: Values, device: torch.device) -> Iterator[str]:
    if values["attn_implementation"] == "flash_attention_2":
        problem = flash_attention_problem(device)
        if problem:
            instead = choose_attention(
                "auto",
                packed=values["use_packed_ds"],
                device=device,
                half_precision=values["bf16"] or values["fp16"],
            )[0]
            yield f"--attn_implementation flash_attention_2: {problem}. auto would take {instead}."
        elif not (values["bf16"] or values["fp16"]):
            yield "--attn_implementation flash_attention_2 needs --bf16 True (or fp16)."
    if values["bf16"] and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        yield "--bf16: this GPU has no bfloat16. Use --fp16 True or --bf16 False."
    if values["fp16"] and device.type == "cpu":
        yield "--fp16 on a CPU: loss scaling needs a GPU. Use --bf16 True or neither."
