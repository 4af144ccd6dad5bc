"""What can be known to be wrong with a run before a weight is read: all of it, at once.

The configs check their own fields when they are built; here they are built for trial, what spans
several of them is compared, and the files they name are looked for by the functions that will load
them.
"""

from __future__ import annotations

import errno
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import DynamoBackend

from internvl_chat.checkpoint.load import vision_problems
from internvl_chat.checkpoint.lora import MLP
from internvl_chat.checkpoint.sources import (
    ADAPTER_CONFIG_NAME,
    find_chat_config,
    native_vision_config,
    read_json,
    require_config,
)
from internvl_chat.checkpoint.tokenizer import find_tokenizer
from internvl_chat.config import SourceConfig, require
from internvl_chat.errors import CheckpointError, ConfigError, printable
from internvl_chat.model.templates import find_template
from internvl_chat.train.arguments import (
    DataArguments,
    ModelArguments,
    data_config,
    held_out_config,
    order_config,
    shape_config,
    source_config,
    trainable_config,
)
from internvl_chat.train.attention import choose_attention, flash_attention_problem
from internvl_chat.train.evaluation_schedule import evaluation_problems
from internvl_chat.train.products import tf32_problem
from internvl_chat.train.rates import DECAY, FLAGS, rate_problems
from internvl_chat.train.trackers import tracker_problems
from internvl_chat.train.zero import read_zero_file

Values = dict[str, Any]
_PATHS: Final = (
    *("output_dir", "logging_dir", "meta_path", "eval_meta_path", "deepspeed"),
    *("model_name_or_path", "vision_path", "llm_path", "mlp_path", "resume_from_checkpoint"),
)


def validate_run(
    model: ModelArguments,
    data: DataArguments,
    values: Values,
    device: torch.device,
    *,
    is_planned: bool = False,
) -> list[str]:
    """Check the arguments, each other, and against the files they name.

    Args:
        model, data: our own arguments.
        values: all arguments by name, transformers' included, defaults filled in.
        device: what the run will compute on.
        is_planned: whether the run is only planned, for any machine: the device, tokenizers and
            the projector's file do not count.

    Returns:
        One sentence or two per problem, with the mend; empty if there is none.
    """
    problems: list[str] = []
    try:
        source = source_config(model)
    except ConfigError as err:
        source = None
        problems += err.problems
    problems += _files(model, is_planned=is_planned)
    checks: tuple[Callable[[], object], ...] = (
        lambda: require(_rates(model, values)),
        lambda: shape_config(model, data),
        lambda: data_config(data, num_image_token=1, meta_path=data.meta_path),
        lambda: held_out_config(data),
        lambda: order_config(data, grouped=False, drop_last=False),
        lambda: find_template(data.conv_style),
        lambda: read_zero_file(values["deepspeed"]),
    )
    for build in checks:
        try:
            build()
        except ConfigError as err:
            problems += err.problems
    problems += _data(data, values)
    problems += _numbers(values)
    problems += _vision(source, model, data)
    if model.load_in_4bit:
        problems += _needs_bitsandbytes()
        problems += four_bit_problems(model, values)
    problems += _output(values)
    problems += _unsupported(values)
    problems += tracker_problems(values["report_to"])
    return problems if is_planned else problems + list(_hardware(values, device))


def name_problems(values: Values) -> Iterator[str]:
    """A sentence for each path that no file can have: looking for it would be an error of its own.

    Args:
        values: arguments by name.
    """
    for name in _PATHS:
        path = values.get(name)
        if not isinstance(path, str) or (name == "deepspeed" and path.lstrip().startswith("{")):
            continue  # the settings themselves
        try:
            os.lstat(path)
        except ValueError:
            yield f"--{name} {path!r}: no file has such a name."
        except OSError as err:
            if err.errno == errno.ENAMETOOLONG:
                yield f"--{name} {path[:80]}…: {len(path)} characters are too long for a path."


def best_metric_problems(metric: str | None, datasets: Sequence[str]) -> Iterator[str]:
    """Whether validation gives the figure by which a model is chosen.

    Args:
        metric: of the arguments, with or without ``eval_``.
        datasets: that are held out, by name.
    """
    known = ["eval_loss", *(f"eval_loss/{name}" for name in datasets)]
    if metric and f"eval_{metric.removeprefix('eval_')}" not in known:
        yield f"--metric_for_best_model {metric}: validation gives {', '.join(known)}."


def _files(model: ModelArguments, *, is_planned: bool) -> Iterator[str]:
    """What loading will look for beside the weights; for a plan, configurations alone."""
    looked_for: tuple[tuple[str, str | None, tuple[Callable[[str], object], ...]], ...] = (
        ("model_name_or_path", model.model_name_or_path, (find_chat_config, find_tokenizer)),
        ("vision_path", model.vision_path, (require_config,)),
        ("llm_path", model.llm_path, (require_config, find_tokenizer)),
    )
    for name, path, finders in looked_for:
        if not path:
            continue
        try:
            for find in finders[:1] if is_planned else finders:
                find(path)
        except CheckpointError as err:
            yield f"--{name} {err}"
    if not is_planned:
        yield from _missing_file("mlp_path", model.mlp_path)


def _missing_file(name: str, path: str | None) -> Iterator[str]:
    if path and not os.path.isfile(path):
        yield f"--{name} {path}: no such file."


def _data(data: DataArguments, values: Values) -> Iterator[str]:
    yield from _missing_file("meta_path", data.meta_path)
    yield from _missing_file("eval_meta_path", data.eval_meta_path)
    if data.use_packed_ds and data.max_packed_tokens < data.max_seq_length:
        yield (
            f"--max_packed_tokens {data.max_packed_tokens} is less than --max_seq_length "
            f"{data.max_seq_length}: a long sample would fit no pack. Raise the one or lower "
            "the other."
        )
    if data.max_packed_tiles is not None and not data.use_packed_ds:
        yield "--max_packed_tiles has no effect without --use_packed_ds True. Add it or drop it."
    if data.pad_to_multiple_of is not None and data.pad_to_multiple_of < 1:
        yield f"--pad_to_multiple_of {data.pad_to_multiple_of}: want a number >= 1."
    elif data.pad_to_multiple_of is not None and data.use_packed_ds:
        yield "--pad_to_multiple_of has no effect with --use_packed_ds True: drop one."
    elif data.pad_to_multiple_of is not None and data.pad_to_multiple_of > data.max_seq_length:
        yield (
            f"--pad_to_multiple_of {data.pad_to_multiple_of} is more than --max_seq_length "
            f"{data.max_seq_length}: rows would be longer than any sample. Use 64 or 128."
        )
    yield from evaluation_problems(values)


def _numbers(values: Values) -> Iterator[str]:
    """transformers' own arguments, which it takes as they come."""
    positive = (
        "max_packed_tokens",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "ddp_timeout",
    )
    for name in positive:
        if not 0 < values[name] < math.inf:
            yield f"--{name} {values[name]}: want a number > 0."
    at_least_zero = (
        *("learning_rate", "weight_decay", "warmup_steps", "dataloader_num_workers"),
        *(flag for flag in FLAGS.values() if values[flag] is not None),
    )
    for name in at_least_zero:
        if not 0 <= values[name] < math.inf:
            yield f"--{name} {values[name]}: want a number >= 0."
    if not 0 < values[DECAY] <= 1:
        yield f"--{DECAY} {values[DECAY]}: want a factor above 0 and up to 1, which is none."
    for name, value in values.items():
        told = (*at_least_zero, DECAY)
        if isinstance(value, float) and math.isnan(value) and name not in told:
            yield f"--{name} nan: want a number."
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= values[name] < 1:
            yield f"--{name} {values[name]}: want 0 <= beta < 1."
    if values["adam_epsilon"] < 0:
        yield f"--adam_epsilon {values['adam_epsilon']}: want a number >= 0."
    for name in ("seed", "data_seed"):
        if values[name] is not None and not 0 <= values[name] < 2**32:
            yield f"--{name} {values[name]}: want a whole number from 0 to 2**32 - 1."
    if values["num_train_epochs"] <= 0 and values["max_steps"] <= 0:
        yield "neither --num_train_epochs nor --max_steps is positive: nothing to train."


def _vision(
    source: SourceConfig | None, model: ModelArguments, data: DataArguments
) -> Iterator[str]:
    """The image size and the chosen layer against the vision tower, where its files are there."""
    if source is None or data.force_image_size <= 0 or not 0 < data.down_sample_ratio <= 1:
        return  # told already
    try:
        vision = native_vision_config(source)
    except CheckpointError:
        return  # told by _files, or by loading with more to say
    yield from vision_problems(
        vision,
        image_size=data.force_image_size,
        down_sample_ratio=data.down_sample_ratio,
        vision_select_layer=model.vision_select_layer,
    )
    layers = vision.num_hidden_layers
    if not -layers <= model.unfreeze_vit_layers < layers:
        yield (
            f"--unfreeze_vit_layers {model.unfreeze_vit_layers}: the tower has {layers} layers. "
            "-2 trains the last two, 2 those behind the first two."
        )


def _needs_bitsandbytes() -> Iterator[str]:
    if importlib.util.find_spec("bitsandbytes") is None:
        yield (
            "--load_in_4bit needs bitsandbytes, which is not installed: pip install bitsandbytes."
        )


def four_bit_problems(model: ModelArguments, values: Mapping[str, Any]) -> Iterator[str]:
    """What QLoRA wants, and what cannot be saved beside it: a sentence each.

    Args:
        model: our own arguments, as they are with ``--load_in_4bit True``.
        values: all arguments by name.
    """
    flag = "--load_in_4bit"
    if not model.use_llm_lora:
        yield (
            f"{flag}: weights of 4 bits cannot train themselves. Add --use_llm_lora and a rank (16 "
            f"for one) and --freeze_llm True, or train without {flag}."
        )
    if not values["bf16"]:
        yield f"{flag} computes in bf16. Add --bf16 True."
    if values["deepspeed"]:
        yield (
            f"{flag} with --deepspeed: ZeRO-3 would cut packed weights and leave their scales "
            "behind, and ZeRO-1 and 2 have only the small optimizer of the adapter to share. Leave "
            "--deepspeed out: torchrun without it gives each GPU the model in 4 bits."
        )
    if not model.model_name_or_path:
        yield (
            f"{flag} with --vision_path and --llm_path: a run in 4 bits saves an adapter, which "
            "names a whole checkpoint as its base. Make one first, by one step without it."
        )
    stored = model.modules_to_save or ()
    if not model.freeze_backbone and "vision_model" not in stored:
        yield (
            f"{flag} saves an adapter, and the vision tower trains beside it. Add "
            "--freeze_backbone True, or --modules_to_save vision_model."
        )
    if model.unfreeze_vit_layers:
        yield f"{flag} saves an adapter alone: --unfreeze_vit_layers would be lost. Drop one."


def _rates(model: ModelArguments, values: Values) -> Iterator[str]:
    """Rates of parts that are frozen."""
    stored = list(model.modules_to_save or ())
    config = Path(model.model_name_or_path or "") / ADAPTER_CONFIG_NAME
    if model.model_name_or_path and config.is_file():
        try:
            kept = read_json(config).get("modules_to_save")
        except CheckpointError:
            kept = None  # told where it is loaded
        if isinstance(kept, list):
            stored += [word for word in kept if word != MLP]  # which has a flag of its own
    yield from rate_problems(values, trainable_config(model), stored_whole=stored)


def _output(values: Values) -> Iterator[str]:
    if not values["output_dir"]:
        yield "--output_dir is missing: where checkpoints and logs go."
    elif os.path.isfile(values["output_dir"]):
        yield f"--output_dir {values['output_dir']}: a file of this name exists."
    elif printable(values["output_dir"]) != values["output_dir"]:
        yield (
            f"--output_dir {values['output_dir']}: its name is not UTF-8, and TensorBoard cannot "
            "write there. Name another, or change into the folder and name one below it."
        )


REFUSED: Final = {
    "fsdp": "--fsdp is not supported. Shard with --deepspeed and a ZeRO-3 file.",
    "auto_find_batch_size": (
        "--auto_find_batch_size would change the global batch. Set the batch sizes."
    ),
    "label_smoothing_factor": (
        "--label_smoothing_factor is not supported by the chunked vocabulary loss. Drop it."
    ),
    "use_liger_kernel": "--use_liger_kernel: the vocabulary loss is chunked already. Drop it.",
    "push_to_hub": "--push_to_hub is not supported. Upload OUTPUT_DIR when training has ended.",
}
"""Arguments of transformers that a run refuses, and why; the help says it, too."""


def _unsupported(values: Values) -> Iterator[str]:
    """transformers' options that would be silently wrong or without effect here."""
    if values["fp16"] and values["bf16"]:
        yield "both --fp16 and --bf16. Give one."
    yield from (problem for name, problem in REFUSED.items() if values[name])
    backend = str(values["torch_compile_backend"] or "inductor")
    if backend.upper() not in list(DynamoBackend):
        known = ", ".join(sorted(one.value.lower() for one in DynamoBackend))
        yield f"--torch_compile_backend {backend}: want one of {known}."
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
            ).llm
            yield f"--attn_implementation flash_attention_2: {problem}. auto would take {instead}."
        elif not (values["bf16"] or values["fp16"]):
            yield "--attn_implementation flash_attention_2 needs --bf16 True (or fp16)."
    if values["tf32"]:
        problem = tf32_problem(device)
        if problem:
            yield f"--tf32 True: {problem}. Drop it."
    if values["bf16"] and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        yield "--bf16: this GPU has no bfloat16. Use --fp16 True or --bf16 False."
    if values["fp16"] and device.type == "cpu":
        yield "--fp16 on a CPU: loss scaling needs a GPU. Use --bf16 True or neither."
