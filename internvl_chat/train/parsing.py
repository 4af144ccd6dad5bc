"""The command line of a run: flags, old spellings, an argument file, and errors all at once."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from internvl_chat.config import require
from internvl_chat.errors import ConfigError
from internvl_chat.model.suggestions import suggest
from internvl_chat.train.arguments import DataArguments, ModelArguments, TrainArguments
from internvl_chat.train.validation import validate_run
from internvl_chat.train.zero import zero_config

logger = logging.getLogger(__name__)

FILE_SUFFIXES = (".yaml", ".yml", ".json")
TRUE_WORDS = ("1", "true", "yes", "y", "t", "")

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
    """What the command line and the file said, before defaults."""


def peek(argv: Sequence[str], name: str, default: str) -> str:
    """Value of a flag that is needed before the arguments can be parsed, e.g. ``ddp_timeout``.

    The process group must exist first (ZeRO-3's configuration asks for the world size), so a few
    flags are read ahead; a wrong value is reported later, by the real parser.
    """
    value = default
    for flag, values in _groups(_with_file(list(argv), [])):
        if flag == f"--{name}":
            value = values[0] if values else "true"
    return value


def is_true(text: str) -> bool:
    """The words that mean yes on the command line."""
    return text.strip().lower() in TRUE_WORDS


def parse(argv: Sequence[str], *, device: torch.device | None = None) -> RunArguments:
    """Read flags (and one YAML or JSON file), check everything, build the argument objects.

    Args:
        argv: without the program's name. A first argument that is a .yaml or .json file holds
            values too; the command line wins over the file, the file over the defaults.
        device: what the run will compute on, for the checks of precision and kernels.

    Raises:
        ConfigError: unknown names (with the nearest known one), unreadable values and
            contradictions: all that were found, together.
    """
    problems: list[str] = []
    tokens = _with_file(list(argv), problems)
    parser = _parser()
    given = _parse_groups(parser, tokens, problems)
    values = {**_defaults(parser), **given}
    device = device or torch.device("cpu")
    model, data = _build(ModelArguments, values), _build(DataArguments, values)
    require([*problems, *validate_run(model, data, values, device)])
    try:
        train = _build(TrainArguments, resolve_defaults(values, device))
    except (ValueError, ImportError) as err:  # transformers' own checks of its own arguments
        raise ConfigError(str(err)) from err
    if train.deepspeed and train.hf_deepspeed_config.mismatches:
        raise ConfigError(
            "the file says otherwise than the arguments: "
            + "; ".join(text.lstrip("- ") for text in train.hf_deepspeed_config.mismatches),
            where="--deepspeed",
            fix='Write "auto" in the file.',
        )
    return RunArguments(
        model=model,
        data=data,
        train=train,
        given=given,
    )


def data_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Those of training's data flags that are given, by name, for verbs that look at its data.

    Raises:
        ConfigError: another flag, or an unreadable value; all that were found, together.
    """
    problems: list[str] = []
    parser = _Parser(DataArguments, allow_abbrev=False, add_help=False)
    given = _parse_groups(parser, list(argv), problems)
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
    if resolved["eval_meta_path"] and resolved["eval_strategy"] == "no":
        resolved["eval_strategy"] = "steps"
    if resolved["ddp_find_unused_parameters"] is None:
        # Layers behind the selected one get no gradient; otherwise all that trains does.
        resolved["ddp_find_unused_parameters"] = resolved["vision_select_layer"] != -1
    return resolved


class _Parser(HfArgumentParser):
    """argparse that raises instead of printing its usage and leaving."""

    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


def _parser() -> _Parser:
    return _Parser(
        (ModelArguments, DataArguments, TrainArguments),
        prog="internvl-chat train",
        allow_abbrev=False,
        add_help=False,
    )


def help_text() -> str:
    """All options with their help, as ``--help`` prints them."""
    return (
        "Example: internvl-chat train --model_name_or_path pretrained/internvl-chat-tiny "
        "--meta_path meta.json --output_dir work_dirs/run\n\n" + _parser().format_help()
    )


def _defaults(parser: _Parser) -> dict[str, Any]:
    # As argparse does it, the first action of a name decides: a switch that defaults to True is
    # followed by its --no_ form, whose own default is False.
    defaults: dict[str, Any] = {}
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS:
            defaults.setdefault(action.dest, action.default)
    return defaults


def _groups(tokens: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Cut ``--a 1 2 --b=3 --c`` into (flag, values); values before any flag have flag ''."""
    values: list[str] = []
    flag, started = "", False
    for token in tokens:
        if token.startswith("--"):
            if started:
                yield flag, values
            flag, _, rest = token.partition("=")
            values = [rest] if "=" in token else []
            flag, started = flag.replace("-", "_").replace("__", "--", 1), True
        else:
            values, started = [*values, token], True
    if started:
        yield flag, values


def _parse_groups(parser: _Parser, tokens: list[str], problems: list[str]) -> dict[str, Any]:
    """Parse flag by flag, so that one bad value does not hide the next."""
    known = {option: action for action in parser._actions for option in action.option_strings}
    given: dict[str, Any] = {}
    for flag, values in map(_rename, _groups(tokens)):
        if flag == "":
            problems.append(f"{' '.join(values)!r} stands before any --argument")
        elif flag[2:] in IGNORED_FLAGS:
            logger.warning("%s is accepted and ignored: %s", flag, IGNORED_FLAGS[flag[2:]])
        elif flag not in known:
            problems.append(_unknown(flag, known))
        else:
            try:
                parsed, rest = parser.parse_known_args([flag, *values])
            except argparse.ArgumentError as err:
                problems.append(str(err))
                continue
            if rest:
                problems.append(f"{flag}: too many values: {' '.join(rest)!r}")
            dest = known[flag].dest
            given[dest] = getattr(parsed, dest)
    return given


def _rename(group: tuple[str, list[str]]) -> tuple[str, list[str]]:
    """Translate the spellings that transformers 5 renamed."""
    flag, values = group
    change = _RENAMED.get(flag)
    return change(values) if change else group


def _grouped_sampling(values: list[str]) -> tuple[str, list[str]]:
    grouped = is_true(values[0]) if values else True
    return "--train_sampling_strategy", ["group_by_length" if grouped else "random"]


_RENAMED: dict[str, Callable[[list[str]], tuple[str, list[str]]]] = {
    "--group_by_length": _grouped_sampling,
    "--evaluation_strategy": lambda values: ("--eval_strategy", values),
    "--warmup_ratio": lambda values: ("--warmup_steps", values),
    "--no_cuda": lambda values: ("--use_cpu", values),
    "--gradient_checkpointing": lambda values: ("--grad_checkpoint", values),
    "--activation_checkpointing": lambda values: ("--grad_checkpoint", values),
}


def _unknown(flag: str, known: dict[str, Any]) -> str:
    hint = suggest(flag, [*known, *_RENAMED], write=str) or "See --help."
    return f"unknown argument {flag}. {hint}"


def _with_file(argv: list[str], problems: list[str]) -> list[str]:
    """Put a leading argument file's values before the flags, so that the flags win."""
    if not argv or argv[0].startswith("--") or not argv[0].endswith(FILE_SUFFIXES):
        return argv
    path = Path(argv[0])
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except OSError as err:
        problems.append(f"{path}: cannot be read ({err.strerror})")
        return argv[1:]
    except yaml.YAMLError as err:
        problems.append(f"{path}: neither YAML nor JSON ({' '.join(str(err).split())})")
        return argv[1:]
    if not isinstance(loaded, dict):
        problems.append(f"{path}: want an object of argument: value, got {type(loaded).__name__}")
        return argv[1:]
    return [token for name, value in loaded.items() for token in _flag(name, value)] + argv[1:]


def _flag(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]
