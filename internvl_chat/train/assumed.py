"""What a run is taken to mean by what it does not say: the defaults of ``internvl-chat train``.

A model and data are enough for a run that is started by the verb or by a run file; the values
here, most of them the shipped recipes', fill in the rest. ``internvl_chat/train/finetune.py`` with
flags alone, as the recipes start it, keeps the defaults of ``arguments.py`` and of transformers.
The table for users is in docs/training.md. Pure: values in, values out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from internvl_chat.checkpoint.hub_names import last_part

FIXED: Final[Mapping[str, Any]] = {
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.05,
    "per_device_train_batch_size": 4,
    "train_sampling_strategy": "group_by_length",
    "grad_checkpoint": True,
    "save_steps": 200.0,
    "save_total_limit": 1,
}
"""What the recipes set, whatever the model and the machine."""

GLOBAL_BATCH_SIZE: Final = 16
"""Samples per optimizer step that accumulation comes to, as in the LoRA recipe, where no batch
size is given."""
LORA_RANK: Final = 16
RATE: Final = 1e-5
"""Where the LLM or the vision tower trains itself, as in the recipes."""
ADAPTER_RATE: Final = 1e-4
"""Where adapters or the projector train alone: they start from nothing."""
NUM_WORKERS: Final = 4

SHOWN: Final[Mapping[str, str]] = {
    **{name: f"*{value:g}" for name, value in FIXED.items() if type(value) in (int, float)},
    "lr_scheduler_type": "*cosine",
    "train_sampling_strategy": "*group_by_length",
    "grad_checkpoint": "*True",
    "learning_rate": "*1e-4 for LoRA or projector alone, else 1e-5",
    "gradient_accumulation_steps": "*to 16 samples a step, where no batch size is given",
    "bf16": "*where the GPU has it",
    "dataloader_num_workers": f"*{NUM_WORKERS} with a GPU",
    "output_dir": "*work_dirs/NAME of the file or the model",
    "use_llm_lora": f"*{LORA_RANK}, where no flag says what trains",
    "eval_strategy": "no; with held-out records as checkpoints are saved",
    "eval_steps": "--save_steps",
    "freeze_llm": "*True with LoRA",
    "freeze_mlp": "*True with LoRA",
    "freeze_backbone": "*True, where not told what trains",
}
"""How the help shows them."""

_PARTS: Final = ("freeze_llm", "freeze_mlp", "freeze_backbone")
_RANKS: Final = ("use_llm_lora", "use_backbone_lora")
_UNFREEZING: Final = ("unfreeze_vit_layers", "unfreeze_lm_head")
_RATES: Final[Mapping[str, Mapping[str, Any]]] = {
    "freeze_backbone": {"vision_lr": None, "vit_layer_decay_rate": 1.0},
    "freeze_mlp": {"mlp_lr": None},
}
"""What gives a part a learning rate of its own, with the value that does not: it is meant to
train."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What of the machine decides."""

    world_size: int
    on_gpu: bool
    has_bf16: bool
    num_cpus: int
    """Cores that each process may have for itself."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Values that nobody gave."""

    values: Mapping[str, Any]
    """By name of the argument."""
    carried: tuple[int, int] = (0, 0)
    """Ranks of the adapters that the checkpoint has, of LLM and vision tower."""


def assume(
    given: Mapping[str, Any],
    around: Surroundings,
    *,
    carried: tuple[int, int] = (0, 0),
    trainable_flags: frozenset[str],
    lora_flags: frozenset[str],
) -> Assumptions:
    """Fill in what a run does not say.

    Args:
        given: what command line and file said, by name.
        around: the machine.
        carried: ranks of the adapters that the checkpoint has, of LLM and vision tower.
        trainable_flags: names of all flags that say which weights train themselves.
        lora_flags: of all flags about adapters.
    """
    values: dict[str, Any] = dict(FIXED)
    values |= _trainable(given, carried, trainable_flags, lora_flags)
    both = {**values, **given}
    values["learning_rate"] = ADAPTER_RATE if _towers_are_frozen(both) else RATE
    if "per_device_train_batch_size" not in given:  # who gives the one, knows the other
        per_pass = FIXED["per_device_train_batch_size"] * around.world_size
        values["gradient_accumulation_steps"] = max(GLOBAL_BATCH_SIZE // per_pass, 1)
    has_bf16 = around.on_gpu and around.has_bf16
    # Four bits are computed with in bf16, on a CPU, too.
    values["bf16"] = bool((has_bf16 or given.get("load_in_4bit")) and not given.get("fp16"))
    if around.on_gpu:
        values["dataloader_num_workers"] = min(NUM_WORKERS, around.num_cpus)
    values = {name: value for name, value in values.items() if name not in given}
    return Assumptions(values=values, carried=carried)


def _towers_are_frozen(values: Mapping[str, Any]) -> bool:
    """Whether no weight of LLM and vision tower trains itself."""
    frozen = all(values.get(name, False) for name in ("freeze_llm", "freeze_backbone"))
    return frozen and not any(values.get(name) for name in _UNFREEZING)


def as_sentences(
    assumed: Assumptions, values: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[str, ...]:
    """Sentences for the log: what trains, and what was assumed.

    Args:
        assumed: of :func:`assume`.
        values: all arguments by name, as the run has them in the end.
        given: what command line and file said.
    """
    parts = _told_parts(values, given, assumed.carried)
    return parts, _listed([name for name in assumed.values if name in values], values)


def _trainable(
    given: Mapping[str, Any],
    carried: tuple[int, int],
    trainable_flags: frozenset[str],
    lora_flags: frozenset[str],
) -> dict[str, Any]:
    """Which weights train where the run does not say.

    Who freezes parts by hand is taken at the word; who asks for an adapter means it on frozen
    weights; ``--use_llm_lora 0`` alone is the recipe for the whole LLM. A part with a learning rate
    of its own trains. A flag that asks for nothing, as ``--use_backbone_lora 0``, says nothing.
    """
    ranks = {name: given[name] for name in _RANKS if name in given}
    if not ranks.get("use_backbone_lora", True):
        del ranks["use_backbone_lora"]
    about_adapters = not given.keys().isdisjoint(lora_flags - set(_RANKS))
    wants_lora = any(ranks.values()) or (about_adapters and not ranks)
    idle = {name for name in _UNFREEZING if not given.get(name)}
    says_what = not given.keys().isdisjoint(trainable_flags - idle)
    if says_what and not wants_lora:
        return {}
    has_rate = {
        part
        for part, rates in _RATES.items()
        if any(given.get(name, none) != none for name, none in rates.items())
    }
    needs_frozen = bool(ranks.get("use_backbone_lora") or given.get("unfreeze_vit_layers"))
    found: dict[str, Any] = {
        "freeze_backbone": needs_frozen or "freeze_backbone" not in has_rate,
    }
    if ranks and not wants_lora:
        return found
    found["freeze_llm"] = True
    is_new = bool(given.get("vision_path") or given.get("llm_path"))
    if given.keys().isdisjoint(_PARTS):
        # A projector between parts that never met has all to learn.
        found["freeze_mlp"] = not is_new and "freeze_mlp" not in has_rate
    if not ranks:
        found |= dict(zip(_RANKS, carried if any(carried) else (LORA_RANK, 0), strict=True))
    return found


def _told_parts(
    values: Mapping[str, Any], given: Mapping[str, Any], carried: tuple[int, int]
) -> str:
    """What trains, in a sentence, and how to have it otherwise where nobody has said it."""
    trains = []
    for name, part, rank in (
        ("freeze_llm", "LLM", "use_llm_lora"),
        ("freeze_mlp", "projector", ""),
        ("freeze_backbone", "vision tower", "use_backbone_lora"),
    ):
        if not values.get(name):
            trains.append(f"the {part}")
        elif values.get(rank):
            trains.append(f"LoRA of rank {values[rank]} on the {part}")
    if values.get("unfreeze_lm_head"):
        trains.append("the LLM's head")
    if values.get("unfreeze_vit_layers"):
        trains.append("some layers of the vision tower")
    if values.get("modules_to_save"):
        trains.append(f"{', '.join(values['modules_to_save'])} whole")
    text = f"what trains: {', '.join(trains) or 'nothing'}"
    if any(carried):
        text += ", which goes on with the checkpoint's"
    elif given.keys().isdisjoint((*_PARTS, *_RANKS)):
        text += "; --use_llm_lora 0 trains LLM and projector whole instead"
    return text


def _listed(names: Iterable[str], values: Mapping[str, Any]) -> str:
    shown = [
        f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}"
        for name, value in ((name, values[name]) for name in names if _counts(name, values))
        if name not in (*_PARTS, *_RANKS, "output_dir")  # told in words
    ]
    return f"assumed, as nothing else was said: {' '.join(shown)}"


def _counts(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a value has an effect beside the others; if not, it would only be noise."""
    saves = values.get("save_strategy", "steps")
    if name == "num_train_epochs":
        return values.get("max_steps", -1) <= 0
    if name == "save_steps":
        return bool(saves == "steps")
    return name != "save_total_limit" or bool(saves != "no")


# ---- the folder ---------------------------------------------------------------------------------


def output_dir_of(file: str | None, paths: Mapping[str, str]) -> str:
    """Where a run goes that does not say it: ``work_dirs/`` and the run file's or model's name.

    The same run gives the same folder, so that it goes on there; an earlier run of other arguments
    in it is never replaced (docs/training.md). It is none of the folders that the run reads.

    Args:
        file: the run file, if there is one.
        paths: those of the model and its parts that are given, by flag.
    """
    source = file or paths.get("model_name_or_path") or paths.get("llm_path") or "run"
    name = Path(source).stem if file else last_part(source) or "run"
    folder = f"work_dirs/{name if file else f'{name}_tuned'}"
    read = {os.path.realpath(path) for path in paths.values()}
    while os.path.realpath(folder) in read:
        folder += "_tuned"
    return folder
