"""VLMEvalKit's options and environment, of both states of the toolkit, as ``run.py`` takes them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError

TABLE_FORMATS = ("xlsx", "tsv", "json")
SCORE_FORMATS = ("csv", "json")
_FOREIGN = {
    "--config": (
        "describes models and data sets by the toolkit's own classes, which are not here",
        "Name checkpoints and data with --model and --data; a TSV may be a path.",
    ),
    "--data-config": (
        "describes data sets by the toolkit's own classes, which are not here",
        "Name data with --data; a TSV may be a path.",
    ),
    "--use-verifier": (
        "asks a verifier model that the toolkit ships",
        "--judge NAME asks any endpoint.",
    ),
    "--use-vllm": (
        "has another engine answer, whose answers differ in rounding",
        "Leave it out: questions are answered in batches here, too.",
    ),
    "--api-mode": (
        "asks models behind an endpoint; here checkpoints are loaded",
        "Name a checkpoint with --model.",
    ),
    "--base-url": (
        "is of models behind an endpoint; here checkpoints are loaded",
        "For the judge's address give --judge-base-url.",
    ),
    "--key": ("is of models behind an endpoint", "For the judge's key give --judge-key."),
}
"""Options of the toolkit that are refused: why, and what to give instead."""
_JUDGE_ARGS = {
    "model": "judge",
    "nproc": "nproc",
    "retry": "retry",
    "timeout": "judge_timeout",
    "key": "judge_key",
    "api_base": "judge_base_url",
}
"""Keys of ``--judge-args`` -> the option that says the same."""


def make_parser() -> argparse.ArgumentParser:
    """Options of both states of the toolkit, as far as their meanings agree."""
    parser = argparse.ArgumentParser(prog="run.py", description="Ask models VLMEvalKit's data.")
    add = parser.add_argument
    add("--data", nargs="+", help="Names of data sets, or paths of TSV files.")
    add("--model", nargs="+", help="Paths of checkpoints, or names in pretrained/.")
    add("--work-dir", default=os.environ.get("MMEVAL_ROOT", "."), help="Of the results.")
    add("--mode", choices=("all", "infer", "eval"), default="all", help="Ask, score, or both.")
    add("--judge", help="Judge model; exact_matching: none.")
    add("--judge-base-url", help="Of an OpenAI-style server.")
    add("--judge-args", help=f"JSON object, keys {', '.join(_JUDGE_ARGS)}; options go before it.")
    add("--verbose", action="store_true", help="Show every answer.")
    add("--rules", help="2024 (by default), later or official.")
    add("--limit", type=int, help="Only the first n questions.")
    add("--batch-size", type=int, help="Questions at a time; chosen by default.")
    add("--nframe", type=int, help="Frames of a video.")
    no_compile = "On a GPU: do not record the steps of an answer."
    add("--no-compile", dest="compile", action="store_false", help=no_compile)
    add("--judge-key", help="Of that server; the environment's by default.")
    add("--judge-prompts", type=Path, help="YAML file of what the judge is asked.")
    add("--judge-timeout", type=float, help="Seconds that a reply may take.")
    for flags in (("--nproc", "--api-nproc", "--judge-api-nproc"), ("--retry", "--judge-retry")):
        add(*flags, type=int, help="Of requests to the judge: how many at once, how many tries.")
    for flag in ("--reuse", "--ignore", "--keep-failed", "--pack", "--use-subtitle"):
        add(flag, action="store_true", help="Taken and not needed: runs resume and score anew.")
    add("--rerun", action="store_true", help="Ask the judge anew.")
    add("--reuse-aux", choices=("all", "infer", "none"), help="Taken and not needed, too.")
    for flag in _FOREIGN:
        add(flag, nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def refuse_foreign(options: argparse.Namespace) -> None:
    """See that no option of the toolkit is given that has no meaning here, and what must be is.

    Raises:
        ConfigError: says why, and what to give instead.
    """
    for flag, (why, instead) in _FOREIGN.items():
        if getattr(options, flag.removeprefix("--").replace("-", "_")) is not None:
            raise ConfigError(why, where=flag, fix=instead)
    for flag, value in (("--data", options.data), ("--model", options.model)):
        if not value:
            raise ConfigError("is missing", where=flag, fix="run.py --data MMStar --model NAME")


def judge_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the judge, as :func:`~internvl_chat.cli.eval.judges_of` takes it.

    Raises:
        ConfigError: ``--judge-args`` is no JSON object, or has a key of no meaning here.
    """
    said = _judge_args(options.judge_args)

    def of(name: str) -> Any:
        own = getattr(options, name)
        return said.get(name) if own is None else own

    return {
        "name": of("judge"),
        "base_url": of("judge_base_url"),
        "api_key": of("judge_key"),
        "most_at_once": of("nproc"),
        "most_tries": of("retry"),
        "reply_seconds": of("judge_timeout"),
    }


def _judge_args(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    known = ", ".join(_JUDGE_ARGS)
    try:
        found = json.loads(text)
    except ValueError as err:
        raise ConfigError(f"is no JSON ({err})", where="--judge-args", fix="Quote it.") from err
    if not isinstance(found, dict):
        raise ConfigError("is no JSON object", where="--judge-args", fix=f"Keys are {known}.")
    strange = sorted(set(found) - set(_JUDGE_ARGS))
    if strange:
        raise ConfigError(
            f"{', '.join(strange)} cannot be set",
            where="--judge-args",
            fix=f"Keys are {known}; temperature and length of a reply are the benchmark's own.",
        )
    kinds = {"nproc": int, "retry": int, "timeout": (int, float)}
    for key, value in found.items():
        kind: Any = kinds.get(key, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            want = "a text" if kind is str else "a number"
            raise ConfigError(f"{key} is {value!r}, want {want}", where="--judge-args")
    return {_JUDGE_ARGS[key]: value for key, value in found.items()}


def table_formats(environ: Mapping[str, str]) -> dict[str, Any]:
    """Formats of tables that ``PRED_FORMAT`` and ``EVAL_FORMAT`` name.

    Raises:
        ConfigError: it is none.
    """
    found = {}
    named = (
        ("table_format", "PRED_FORMAT", TABLE_FORMATS),
        ("score_format", "EVAL_FORMAT", SCORE_FORMATS),
    )
    for field, name, known in named:
        value = environ.get(name, "") or known[0]
        if value not in known:
            raise ConfigError(f"is {value!r}", where=name, fix=f"Set {', '.join(known)}.")
        found[field] = value
    return found
