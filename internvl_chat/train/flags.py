"""What the help of ``train`` and shell completion say of each flag: group, kind, default, words.

Ours are read from the classes of ``arguments.py``. Of transformers' the table below lists those
that fine-tuning is usually told, in words of our own; a test holds it against the parser. Loads
neither torch nor transformers, so that help and completion answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from internvl_chat.train.arguments import DataArguments, ModelArguments, RunOptions
from internvl_chat.train.assumed import SHOWN

GROUPS: Final[Mapping[str, str]] = {
    "model": "Model",
    "data": "Data",
    "images": "Images and videos",
    "trainable": "What trains",
    "lora": "LoRA",
    "optimisation": "Optimisation",
    "saving": "Saving and validation",
    "run": "Run",
}
"""Group -> its title, in the order of the help. A run file may have them as sections."""
OTHER: Final = "other"
"""The group of what only ``--help-all`` shows."""

_COMMON: Final = """
optimisation learning_rate FLOAT 5e-05: Peak of the learning rate.
optimisation num_train_epochs FLOAT 3.0: Passes over the data.
optimisation max_steps INT -1: Optimizer steps in place of epochs, above 0.
optimisation per_device_train_batch_size INT 8: Samples per device in one forward pass.
optimisation gradient_accumulation_steps INT 1: Forward passes per optimizer step.
optimisation lr_scheduler_type NAME linear: cosine, linear, constant, cosine_with_min_lr, ...
optimisation lr_scheduler_kwargs JSON: What the schedule takes: {"min_lr": 1e-6}.
optimisation warmup_steps FLOAT 0: Steps of warm-up; below 1 a share, as --warmup_ratio.
optimisation weight_decay FLOAT 0.0: Of matrices; vectors have none.
optimisation max_grad_norm FLOAT 1.0: Gradients are clipped to this norm.
optimisation optim NAME adamw_torch_fused: adamw_torch, adamw_8bit, adafactor, ...
optimisation adam_beta1 FLOAT 0.9: Decay of the mean gradient.
optimisation adam_beta2 FLOAT 0.999: Decay of the mean squared gradient.
optimisation adam_epsilon FLOAT 1e-08: Added below the fraction.
optimisation train_sampling_strategy NAME random: Order of the samples: random, group_by_length.
optimisation bf16 BOOL False: Compute in bfloat16, with fp32 master weights.
optimisation fp16 BOOL False: Compute in float16 with loss scaling, where bf16 is missing.
optimisation tf32 BOOL: Whether fp32 products use TF32 (Ampere or newer).
optimisation neftune_noise_alpha FLOAT: Noise on embeddings (NEFTune).
saving save_strategy {no,steps,epoch,best} steps: When to save a checkpoint.
saving save_steps FLOAT 500: Every so many steps.
saving save_total_limit INT: Newest checkpoints that are kept.
saving save_only_model BOOL False: Leave out what it takes to continue.
saving enable_jit_checkpoint BOOL False: Save a checkpoint when SIGTERM comes.
saving eval_strategy {no,steps,epoch} no: When to compute the held-out loss.
saving eval_steps FLOAT: Every so many steps.
saving eval_on_start BOOL False: Also before the first step.
saving per_device_eval_batch_size INT 8: Held-out samples per device in one forward pass.
saving load_best_model_at_end BOOL False: The best checkpoint is the result, not the last.
saving metric_for_best_model NAME: eval_loss, or eval_loss/DATASET.
saving greater_is_better BOOL: Whether more of that metric is better.
run output_dir PATH: Folder for checkpoints, logs and the result.
run deepspeed FILE: auto, zero1, zero2, zero3, ... or a file; without it data parallel.
run resume_from_checkpoint PATH: A checkpoint to go on from; by default OUTPUT_DIR's newest.
run seed INT 42: Of weights, order and augmentation.
run data_seed INT: Of the order of the data alone.
run dataloader_num_workers INT 0: Processes per device that read images.
run run_name TEXT: Name of the run for trackers.
run logging_strategy {no,steps,epoch} steps: When figures are logged.
run disable_tqdm BOOL: No progress bar.
run use_cpu BOOL False: Compute on the CPU although there is a GPU.
run ddp_timeout INT 1800: Seconds that ranks wait for each other.
run torch_compile BOOL False: Compile the blocks of both towers (not under ZeRO-3).
"""
"""Group, flag, kind, transformers' default: words."""
_LINE: Final = re.compile(r"(\w+) (\w+) ([\w{},]+)(?: (\S+))?: (.+)")


@dataclass(frozen=True)
class Flag:
    """One flag of ``train``."""

    name: str
    group: str
    kind: str
    """``INT``, ``PATH``, or ``{a,b}`` for a choice."""
    default: str
    """As it is shown; empty where nothing is the default."""
    words: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The values to choose from; empty if it takes any."""
        if self.kind == "BOOL":
            return ("True", "False")
        return tuple(self.kind[1:-1].split(",")) if self.kind.startswith("{") else ()


@functools.cache
def flags() -> dict[str, Flag]:
    """By name: ours in their order, then what is listed of transformers'."""
    found = {flag.name: flag for kind in (ModelArguments, DataArguments) for flag in _of(kind)}
    common = {flag.name: flag for flag in _common()}
    own = {flag.name: flag for flag in _of(RunOptions)}
    folder = {"output_dir": common["output_dir"]}  # leads its group, before ours
    return found | folder | own | common


def trainable_flags() -> frozenset[str]:
    """Flags that say which weights train themselves."""
    return frozenset(name for name, flag in flags().items() if flag.group == "trainable")


def lora_flags() -> frozenset[str]:
    """Flags about adapters."""
    return frozenset(name for name, flag in flags().items() if flag.group == "lora")


def _of(kind: type[Any]) -> Iterator[Flag]:
    """The flags of one of our classes, each in the group that began last."""
    hints = get_type_hints(kind)
    group = ""
    for one in dataclasses.fields(kind):
        group = kind.starts.get(one.name, group)
        yield Flag(
            one.name,
            group,
            _kind(one.name, hints[one.name]),
            _shown_default(one.name, one.default),
            " ".join(str(one.metadata.get("help", "")).split()),
        )


def _common() -> Iterator[Flag]:
    for line in _COMMON.strip().splitlines():
        match = _LINE.fullmatch(line)
        assert match, line
        group, name, kind, default, words = match.groups()
        yield Flag(name, group, kind, SHOWN.get(name, default or ""), words)


def _kind(name: str, hint: Any) -> str:
    """``PATH``, ``INT``, ``{v1,v2}``, ... of an annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [one for one in get_args(hint) if one is not type(None)]
        hint = inner[-1]  # as transformers' parser reads it
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if hint is list or get_origin(hint) is list:
        return "NAMES"
    if hint is dict or get_origin(hint) is dict:
        return "JSON"
    if hint is str and name.endswith(("_path", "_dir")):
        return "PATH"
    return {bool: "BOOL", int: "INT", float: "FLOAT"}.get(hint, "TEXT")


def _shown_default(name: str, default: Any) -> str:
    if name in SHOWN:
        return SHOWN[name]
    if default is None or default is dataclasses.MISSING:
        return ""
    return str(default)


# ---- the help -----------------------------------------------------------------------------------

_HEAD: Final = """\
Usage: internvl-chat train [RUN.yaml] [--FLAG VALUE ...]

Fine-tune. A model and data are enough; the rest is assumed and said at start.

  internvl-chat train examples/configs/lora_laptop.yaml
  internvl-chat train --model_name_or_path pretrained/internvl-chat-tiny \\
      --meta_path examples/samples/meta.json

Those files are in a clone; internvl-chat recipes FOLDER writes them anywhere.
A run file holds flags without dashes (seed: 3); flags behind it win.
Several devices: torchrun --nproc-per-node 2 --no-python internvl-chat train ...
Defaults marked * are those of this verb and of run files; the script
internvl_chat/train/finetune.py with flags alone has transformers' (--help-all).
"""
_TAIL: Final = """
--help-all lists the other flags, which are transformers' TrainingArguments.
The manual: docs/training.md. Where data comes from: docs/custom_dataset.md.
"""
_HELP_COLUMN: Final = 32
HELP_ALL: Final = "--help-all"
HELP_FLAGS: Final = frozenset({"-h", "--help", HELP_ALL})


def help_width() -> int:
    """Columns of the terminal, within what reads well."""
    return max(min(shutil.get_terminal_size().columns, 100), 60)


def help_text(width: int | None = None) -> str:
    """The help of ``train``: its flags by group.

    Args:
        width: in columns; None for the terminal's.
    """
    columns = width or help_width()
    parts = [_HEAD]
    for group, title in GROUPS.items():
        members = [flag for flag in flags().values() if flag.group == group]
        parts += [section(title, members, columns)]
    return "\n".join(parts) + _TAIL


def section(title: str, members: Iterable[Flag], width: int) -> str:
    """One group of flags under its title, each with kind, words and default."""
    lines = [title]
    for flag in members:
        left = f"  --{flag.name} {flag.kind}"
        words = f"{flag.words} [{flag.default}]" if flag.default else flag.words
        room = max(width - _HELP_COLUMN, 24)
        wrapped = textwrap.wrap(words, room, break_on_hyphens=False) or [""]
        if len(left) > _HELP_COLUMN - 2:
            lines.append(left)
            left = ""
        lines.append(f"{left:<{_HELP_COLUMN}}{wrapped[0]}".rstrip())
        lines += [" " * _HELP_COLUMN + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n"
