"""The command line of a run: flags, old spellings, an argument file, and errors all at once."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from internvl_chat.config import require
from internvl_chat.errors import ConfigError
from internvl_chat.train.argument_file import (
    EMPTY,
    FILE_SUFFIXES,
    Written,
    beside_the_file,
    names_file,
    written,
)
from internvl_chat.train.arguments import DataArguments, ModelArguments
from internvl_chat.train.assumed import (
    Assumptions,
    Surroundings,
    as_sentences,
    assume,
    output_dir_of,
)
from internvl_chat.train.evaluation_schedule import with_evaluation
from internvl_chat.train.flags import GROUPS, Flag, flags, lora_flags, section, trainable_flags
from internvl_chat.train.inherited import carried_ranks, explained, kept_by, kept_problems
from internvl_chat.train.trackers import named_trackers
from internvl_chat.train.trainer_arguments import TrainArguments
from internvl_chat.train.unknown_flags import stray_problem, unknown_problem
from internvl_chat.train.validation import REFUSED, name_problems, validate_run
from internvl_chat.train.zero import zero_config
from internvl_chat.train.zero_choice import is_auto

logger = logging.getLogger(__name__)

TRUE_WORDS = ("1", "true", "yes", "y", "t", "on", "")
_MOST_SECONDS = 1e9
"""Longer spans of time overflow where they are counted in nanoseconds."""
_SWITCH_WORDS = {"on": "true", "off": "false"}
"""What transformers' parser does not take for a truth, and YAML does."""

IGNORED_FLAGS = {
    "save_safetensors": "checkpoints are always safetensors",
    "overwrite_cache": "caches follow their files",
}
"""Flags of older recipes that have nothing left to decide, and why."""


@dataclass(frozen=True)
class RunArguments:
    """Everything a run was told."""

    model: ModelArguments
    data: DataArguments
    train: TrainArguments
    given: dict[str, Any]
    """What the command line and the file said, before the checkpoint's values and defaults."""
    told: tuple[str, ...] = ()
    """What was assumed, for the log."""


def peek(argv: Sequence[str], name: str, default: str) -> str:
    """Value of a flag that is needed before the arguments can be parsed, e.g. ``ddp_timeout``.

    The process group must exist first (ZeRO-3's configuration asks for the world size), so a few
    flags are read ahead; a wrong value is reported later, by the real parser.
    """
    value = default
    for one in written(argv, []):
        if one.flag == f"--{name}" and one.values != [EMPTY]:
            value = one.values[0] if one.values else "true"
    return value


def output_dir(argv: Sequence[str], *, assumes: bool) -> str:
    """The folder of a run before its arguments are parsed; empty where nothing names one.

    Args:
        argv: of the command line.
        assumes: whether one is assumed where none is given.
    """
    folder = peek(argv, "output_dir", "")
    if folder or not assumes:
        return folder
    if names_file(argv):
        return assumed_output_dir(argv) if os.path.isfile(argv[0]) else ""
    return assumed_output_dir(argv) if any(peek(argv, name, "") for name in _MODEL_PATHS) else ""


def assumed_output_dir(argv: Sequence[str]) -> str:
    """Where a run goes whose command line and file do not say it."""
    named = {name: peek(argv, name, "") for name in _MODEL_PATHS}
    paths = {name: path for name, path in named.items() if path}
    return output_dir_of(argv[0] if names_file(argv) else None, paths)


def peek_seconds(argv: Sequence[str], name: str, default: float) -> float:
    """As :func:`peek`, a number above zero; the default for what is none."""
    try:
        seconds = float(peek(argv, name, str(default)))
    except ValueError:
        return default
    return seconds if 0 < seconds < _MOST_SECONDS else default


def is_true(text: str) -> bool:
    """The words that mean yes on the command line."""
    return text.strip().lower() in TRUE_WORDS


def parse(
    argv: Sequence[str],
    *,
    device: torch.device | None = None,
    models: Mapping[str, str] | None = None,
    around: Surroundings | None = None,
) -> RunArguments:
    """Read flags (and one YAML or JSON file), check everything, build the argument objects.

    Args:
        argv: without the program's name. A first argument that is a .yaml or .json file holds
            values too; the command line wins over the file, the file over what the checkpoint
            keeps, that over what is assumed, and that over the defaults.
        device: what the run will compute on, for the checks of precision and kernels.
        models: flag -> where its model lies, for models on the hub.
        around: the machine, for a run that is completed by what ``assumed.py`` assumes; None for
            one that is not.

    Raises:
        ConfigError: unknown names (with the nearest known one), unreadable values and
            contradictions: all that were found, together.
    """
    return as_run(read_arguments(argv, device=device, models=models, around=around), device)


def as_run(
    read: ReadArguments, device: torch.device | None = None, *, zero: str | None = None
) -> RunArguments:
    """The second part of :func:`parse`, which needs the process group.

    Args:
        read: of the first.
        device: as of :func:`parse`.
        zero: what ``--deepspeed auto`` has come to; None for a run without DeepSpeed.

    Raises:
        ConfigError: transformers or a DeepSpeed file contradict the arguments.
    """
    values = {**read.values, "deepspeed": zero} if read.leaves_zero else read.values
    train = _trainer_arguments(resolve_defaults(values, device or torch.device("cpu")))
    return RunArguments(
        model=read.model, data=read.data, train=train, given=read.given, told=read.told
    )


@dataclass(frozen=True, kw_only=True)
class ReadArguments:
    """Arguments read and checked, before transformers' own objects are made of them."""

    model: ModelArguments
    data: DataArguments
    values: dict[str, Any]
    """All arguments by name, transformers' included, defaults filled in."""
    given: dict[str, Any]
    told: tuple[str, ...]
    leaves_zero: bool
    """``--deepspeed auto``: ``values`` are those of a run without DeepSpeed."""


def read_arguments(
    argv: Sequence[str],
    *,
    device: torch.device | None = None,
    models: Mapping[str, str] | None = None,
    around: Surroundings | None = None,
    is_planned: bool = False,
) -> ReadArguments:
    """The first part of :func:`parse`, which needs neither processes nor DeepSpeed.

    Args:
        argv, device, models, around: as of :func:`parse`.
        is_planned: whether the run is only planned, for any machine: the device, tokenizers and
            the projector's file are not looked for.

    Raises:
        ConfigError: as :func:`parse`.
    """
    problems: list[str] = []
    parser = _parser()
    said = written(argv, problems)
    if names_file(argv) and not any(one.where for one in said):
        require(problems)  # nothing of the file could be read; what is missing stands in it
    given = _parse_groups(parser, said, problems)
    unnameable = list(name_problems(given))
    if unnameable:
        require([*problems, *unnameable])
    found = {**given, **(models or {})}
    checkpoint = found.get("model_name_or_path")
    kept = kept_by(checkpoint)
    assumed = _assumed(argv, found, around)
    values = with_evaluation({**_defaults(parser), **assumed.values, **kept, **found}, given)
    leaves_zero = is_auto(values["deepspeed"])
    if leaves_zero:
        values["deepspeed"] = None
    device = device or torch.device("cpu")
    model, data = _build(ModelArguments, values), _build(DataArguments, values)
    if given.get("do_train") is False:
        problems.append("--do_train False: this program trains, and nothing else. Leave it out.")
    problems += kept_problems(checkpoint, given)
    found_wrong = validate_run(model, data, values, device, is_planned=is_planned)
    problems += explained(found_wrong, checkpoint, given, kept)
    require([*problems, *beside_the_file(argv)] if problems else [])
    return ReadArguments(
        model=model,
        data=data,
        values=values,
        given=given,
        leaves_zero=leaves_zero,
        told=_told(assumed, values, found) if around else (),
    )


def _trainer_arguments(values: dict[str, Any]) -> TrainArguments:
    """transformers' arguments, by its own checks of them.

    Raises:
        ConfigError: it refuses one, or a DeepSpeed file says otherwise than they do.
    """
    try:
        train = _build(TrainArguments, values)
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
    ) as err:  # transformers' own checks of its own arguments
        raise ConfigError(str(err)) from err
    if train.deepspeed and train.hf_deepspeed_config.mismatches:
        raise ConfigError(
            "the file says otherwise than the arguments: "
            + "; ".join(text.lstrip("- ") for text in train.hf_deepspeed_config.mismatches),
            where="--deepspeed",
            fix='Write "auto" in the file.',
        )
    return train


def _assumed(
    argv: Sequence[str], given: Mapping[str, Any], around: Surroundings | None
) -> Assumptions:
    if around is None:
        return Assumptions(values={})
    found = assume(
        given,
        around,
        carried=carried_ranks(given.get("model_name_or_path")),
        trainable_flags=trainable_flags(),
        lora_flags=lora_flags(),
    )
    if "output_dir" in given:
        return found
    return replace(found, values={**found.values, "output_dir": assumed_output_dir(argv)})


def _told(
    assumed: Assumptions, values: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[str, ...]:
    sentences = as_sentences(assumed, values, given)
    if "output_dir" in given:
        return sentences
    return f"output: {values['output_dir']}, as no --output_dir was given", *sentences


def data_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Those of training's data flags that are given, by name, for verbs that look at its data.

    Raises:
        ConfigError: another flag, or an unreadable value; all that were found, together.
    """
    problems: list[str] = []
    parser = _Parser(DataArguments, allow_abbrev=False, add_help=False)
    given = _parse_groups(parser, written(argv, problems), problems)
    require(problems)
    return given


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.init and f.name in values})


def resolve_defaults(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Fill in what follows from other arguments.

    Args:
        values: by name, defaults filled in.
        device: what the run computes on.
    """
    resolved = {**values, "deepspeed": zero_config(values["deepspeed"], values, device)}
    resolved["report_to"] = named_trackers(values["report_to"])
    if resolved["ddp_find_unused_parameters"] is None:
        # Layers behind the selected one get no gradient; otherwise all that trains does.
        resolved["ddp_find_unused_parameters"] = resolved["vision_select_layer"] != -1
    return resolved


class _Parser(HfArgumentParser):
    """argparse that raises instead of printing its usage and leaving."""

    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


def _parser() -> _Parser:
    parser = _Parser(
        (ModelArguments, DataArguments, TrainArguments),
        prog="internvl-chat train",
        allow_abbrev=False,
        add_help=False,
    )
    parser._option_string_actions["--report_to"].nargs = "+"  # trackers, and YAML's lists of them
    return parser


def other_flags(width: int) -> str:
    """What ``--help-all`` adds to the help: the flags that are not listed there.

    Args:
        width: in columns.
    """
    listed = flags()
    others = [
        _other_flag(action)
        for action in _parser()._actions
        if action.dest not in listed or listed[action.dest].group not in GROUPS
    ]
    unique = {flag.name: flag for flag in reversed(others)}
    return section("Other arguments of transformers", [*unique.values()][::-1], width)


def _other_flag(action: argparse.Action) -> Flag:
    """A flag of transformers as the help shows it, by what its parser reads."""
    name, default, words = action.dest, action.default, action.help or ""
    if change := _RENAMED.get(f"--{name}"):
        default, words = None, f"Another name of {change([])[0]}."
    if name in REFUSED:
        default, words = None, f"Refused: {REFUSED[name]}"
    kind = _KINDS.get(action.type, "VALUE")
    return Flag(
        name,
        "",
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else kind,
        "" if default in (None, [], argparse.SUPPRESS) else str(default),
        " ".join(words.replace("%%", "%").split()),
    )


_KINDS: dict[Any, str] = {string_to_bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT"}


def _defaults(parser: _Parser) -> dict[str, Any]:
    # As argparse does it, the first action of a name decides: a switch that defaults to True is
    # followed by its --no_ form, whose own default is False.
    defaults: dict[str, Any] = {}
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS:
            defaults.setdefault(action.dest, action.default)
    return defaults


def _parse_groups(
    parser: _Parser, flags_given: Sequence[Written], problems: list[str]
) -> dict[str, Any]:
    """Parse flag by flag, so that one bad value does not hide the next."""
    known = {option: action for action in parser._actions for option in action.option_strings}
    given: dict[str, Any] = {}
    before: dict[str, list[Any]] = {}
    ratio: float | None = None
    for one in flags_given:
        flag, values = _rename((one.flag, one.values))
        if flag == "":
            problems.append(stray_problem(values))
        elif flag[2:] in IGNORED_FLAGS:
            logger.warning("%s is accepted and ignored: %s", flag, IGNORED_FLAGS[flag[2:]])
        elif flag not in known and flag != _WARMUP_RATIO:
            problems.append(
                one.told(unknown_problem(one, flag, [*known, *_RENAMED, _WARMUP_RATIO]))
            )
        elif values == [EMPTY]:
            problems += map(one.told, _without_value(one.flag, known.get(flag)))
        else:
            action = known["--warmup_steps" if flag == _WARMUP_RATIO else flag]
            try:
                value = _value(parser, action, flag, values)
            except argparse.ArgumentError as err:
                told = str(err).replace("--warmup_steps/--warmup-steps", flag)
                problems.append(one.told(told))
                continue
            if flag == _WARMUP_RATIO:
                ratio = value
                continue
            if action.dest in given:
                before.setdefault(action.dest, []).append(given[action.dest])
            given[action.dest] = value
    _tell_of_repetition(given, before)
    problems += _join_warmup(given, ratio)
    return given


def _value(parser: _Parser, action: argparse.Action, flag: str, values: list[str]) -> Any:
    """What a flag's values mean.

    Raises:
        argparse.ArgumentError: they cannot be read, or are too many.
    """
    option = action.option_strings[0] if flag == _WARMUP_RATIO else flag
    if action.type is string_to_bool:
        values = [_SWITCH_WORDS.get(value.lower(), value) for value in values]
    words = [option, *values]
    if len(values) == 1 and values[0].startswith("-"):
        words = [f"{option}={values[0]}"]  # -1e-5 looks like an option to argparse
    parsed, rest = parser.parse_known_args(words)
    if rest:
        told = f"{flag}: too many values: {' '.join(rest)!r}"
        if rest[-1].lower().endswith(FILE_SUFFIXES):
            told += ". A run file goes first: train run.yaml --seed 3"
        raise argparse.ArgumentError(None, told)
    return getattr(parsed, action.dest)


def _without_value(flag: str, action: argparse.Action | None) -> Iterator[str]:
    """A file's key without a value says nothing where nothing is the default."""
    if action is None or action.default is not None:
        yield f"{flag} stands in the file without a value. Give it one, or delete the line."


def _tell_of_repetition(given: dict[str, Any], before: dict[str, list[Any]]) -> None:
    """Recipes' values are overridden by repeating the flag: usual, but to be seen."""
    told = [
        f"--{name} {given[name]} (before: {', '.join(map(str, values))})"
        for name, values in before.items()
        if any(value != given[name] for value in values)
    ]
    if told:
        logger.info("given more than once, the last one counts: %s", "; ".join(told))


def _join_warmup(given: dict[str, Any], ratio: float | None) -> Iterator[str]:
    """transformers 4's rule in whatever order: steps above 0 count, else the ratio.

    transformers 5 has one argument for both, where a number below 1 is a share of the run.
    """
    if ratio is None:
        return
    if not 0 <= ratio <= 1:
        yield f"{_WARMUP_RATIO} {ratio}: want a share between 0 and 1; --warmup_steps takes steps."
        return
    steps = given.get("warmup_steps")
    if steps is not None:
        first = f"{_WARMUP_RATIO} {ratio}", f"--warmup_steps {steps:g}"
        logger.info("of %s and %s the %s counts", *first, "second" if steps > 0 else "first")
    if not steps:
        given["warmup_steps"] = min(ratio, math.nextafter(1.0, 0.0))  # 1 itself is one step


def _rename(group: tuple[str, list[str]]) -> tuple[str, list[str]]:
    """Translate the spellings that transformers 5 renamed."""
    flag, values = group
    change = _RENAMED.get(flag)
    return change(values) if change else group


def _grouped_sampling(values: list[str]) -> tuple[str, list[str]]:
    grouped = is_true(values[0]) if values else True
    return "--train_sampling_strategy", ["group_by_length" if grouped else "random"]


_MODEL_PATHS = ("model_name_or_path", "vision_path", "llm_path", "mlp_path")
_WARMUP_RATIO = "--warmup_ratio"
_RENAMED: dict[str, Callable[[list[str]], tuple[str, list[str]]]] = {
    "--group_by_length": _grouped_sampling,
    "--evaluation_strategy": lambda values: ("--eval_strategy", values),
    "--no_cuda": lambda values: ("--use_cpu", values),
    "--gradient_checkpointing": lambda values: ("--grad_checkpoint", values),
    "--activation_checkpointing": lambda values: ("--grad_checkpoint", values),
}
