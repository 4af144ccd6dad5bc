"""The DeepSpeed file of a run, made to mean the same on GPUs, on CPUs and without DeepSpeed."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from internvl_chat.errors import ConfigError
from internvl_chat.model.suggestions import suggest
from internvl_chat.resources import find_zero_file, is_zero_name, zero_files
from internvl_chat.train.rates import is_by_part

logger = logging.getLogger(__name__)

HIDDEN_SIZE_KEYS = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
)
"""ZeRO settings whose "auto" transformers derives from a hidden size that our config lacks."""

OPTIMIZER_ARGUMENTS = {
    "lr": "learning_rate",
    "eps": "adam_epsilon",
    "weight_decay": "weight_decay",
}


def zero_config(
    source: str | Mapping[str, Any] | None, values: Mapping[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """Read a DeepSpeed file and settle what transformers would not.

    - An Adam or AdamW in it becomes torch's AdamW with the file's numbers, built by the trainer:
      the same optimizer and the same weight-decay groups for ZeRO-0 to 3, with no kernel to be
      compiled. Under CPU offload it is DeepSpeed's CPU Adam where a compiler is at hand.
    - ZeRO-3 always gathers 16-bit weights on save: a checkpoint must load as it is.
    - What makes ZeRO-3 fast is chosen where the file leaves it open, here and, by the model, in
      ``zero3``.

    Args:
        source: of :func:`read_zero_file`; None for a run without DeepSpeed.
        values: the run's arguments by name; numbers of the file's optimizer must agree with them.
        device: where the run computes.

    Returns:
        The configuration for TrainingArguments, "auto" entries left to it.

    Raises:
        ConfigError: the file's optimizer contradicts the arguments.
    """
    if not source:
        return None
    config = read_zero_file(source)
    zero = config.setdefault("zero_optimization", {})
    _require_known(zero)
    for key in HIDDEN_SIZE_KEYS:
        if zero.get(key) == "auto":
            del zero[key]
    if zero.get("stage") == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if values["grad_checkpoint"]:
            # DeepSpeed's linear layer, in Python, forgets its weight until the backward pass. With
            # recomputation that pass follows at once.
            zero.setdefault("memory_efficient_linear", False)
    for precision in ("bf16", "fp16"):
        if values[precision]:
            config.setdefault(precision, {"enabled": "auto"})
    optimizer = config.get("optimizer")
    if optimizer and str(optimizer.get("type", "")).lower() in ("adam", "adamw"):
        _require_agreement(optimizer.get("params", {}), values)
        # DeepSpeed's would have one parameter group, and with it one rate.
        keeps = _offloads(zero) and can_build_cpu_adam(device) and not is_by_part(values)
        if not keeps:
            del config["optimizer"]
    if "optimizer" not in config and _offloads(zero):
        config["zero_force_ds_cpu_optimizer"] = False
    for part in ("offload_optimizer", "offload_param"):
        if device.type == "cpu" and zero.get(part):
            zero[part]["pin_memory"] = False  # there is no device to copy to; compiled as well
    return config


def _require_known(zero: Mapping[str, Any]) -> None:
    """DeepSpeed itself answers an unknown key with a traceback."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    known |= set(DeepSpeedZeroConfig.model_fields)
    for key in zero:
        if key not in known:
            raise ConfigError(
                f"zero_optimization has no {key!r}",
                where="--deepspeed",
                fix=suggest(key, known, write=str) or "Remove it.",
            )


def read_zero_file(source: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """A DeepSpeed configuration, as a copy that may be changed; empty for None.

    Args:
        source: a file's path, the name of a shipped one (``zero3``), JSON text or a mapping. A
            file of the name goes before the shipped one, as with models.

    Raises:
        ConfigError: the file cannot be read, or holds no JSON object; an unknown name.
    """
    if not source:
        return {}
    if isinstance(source, Mapping):
        return json.loads(json.dumps(source))
    is_text = source.lstrip().startswith("{")
    where = "--deepspeed" if is_text else f"--deepspeed {source}"
    path = find_zero_file(source) if not is_text and is_zero_name(source) else Path(source)
    try:
        loaded = json.loads(source if is_text else path.read_text("utf-8"))
    except OSError as err:
        shipped = f"By name, without a file: {', '.join(zero_files())}."
        fix = shipped if isinstance(err, FileNotFoundError) else None
        raise ConfigError(f"cannot be read ({err.strerror}).", where=where, fix=fix) from err
    except ValueError as err:
        raise ConfigError(f"not JSON ({err}).", where=where) from err
    if not isinstance(loaded, dict):
        raise ConfigError("want a JSON object.", where=where)
    return loaded


def is_installed() -> bool:
    """Whether DeepSpeed is there."""
    return importlib.util.find_spec("deepspeed") is not None


def require_deepspeed() -> None:
    """Say what is missing where a run asks for DeepSpeed, before anything imports it.

    Raises:
        ConfigError: it is not installed, as on macOS and Windows.
    """
    if not is_installed():
        raise ConfigError(
            "DeepSpeed is not installed",
            where="--deepspeed",
            fix="pip install deepspeed (on Linux), or leave --deepspeed out: training needs it for "
            "ZeRO only.",
        )


def _offloads(zero: Mapping[str, Any]) -> bool:
    target = (zero.get("offload_optimizer") or {}).get("device", "none")
    return target not in ("none", None)


def can_build_cpu_adam(device: torch.device) -> bool:
    """Whether DeepSpeed's CPU Adam, compiled on first use, is worth it and can be built here."""
    has_compiler = shutil.which("g++") is not None and importlib.util.find_spec("ninja") is not None
    return device.type == "cuda" and has_compiler


def _require_agreement(params: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    numbers = {ds: values[name] for ds, name in OPTIMIZER_ARGUMENTS.items()}
    numbers["betas"] = [values["adam_beta1"], values["adam_beta2"]]
    differing = [
        f"{name}: {params[name]} in the file, {value} in the arguments"
        for name, value in numbers.items()
        if params.get(name, "auto") not in ("auto", value)
    ]
    if differing:
        raise ConfigError(
            f"the optimizer's {'; '.join(differing)}",
            where="--deepspeed",
            fix='Write "auto" in the file and give the number as an argument.',
        )


def stage_of(config: Mapping[str, Any] | None) -> int:
    """ZeRO stage; 0 without DeepSpeed."""
    return int((config or {}).get("zero_optimization", {}).get("stage", 0))


def shrink_buffers(zero: dict[str, Any], num_parameters: int) -> None:
    """Cap bucket sizes, made for 40 B parameters, at what a model has; "auto" is left alone.

    Args:
        zero: the section ``zero_optimization``, changed in place.
        num_parameters: of the whole model.
    """
    for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
        if isinstance(zero.get(key), (int, float)):
            zero[key] = int(min(zero[key], max(num_parameters, 1)))


def reduce_at_once_alone(zero: dict[str, Any], world_size: int) -> None:
    """One rank has nobody to send its gradients to: ZeRO-1 and 2 need not prepare for it.

    Cutting a bucket by receivers divides it by the number of ranks and copies it, kernel by kernel,
    and what overlaps with computing waits for the device instead. Reduced as a whole, in their
    turn, gradients are the same, whatever the file says.

    Args:
        zero: the section ``zero_optimization``, changed in place.
        world_size: ranks that share the gradients.
    """
    if zero.get("stage") in (1, 2) and world_size == 1:
        zero["reduce_scatter"] = zero["overlap_comm"] = False
