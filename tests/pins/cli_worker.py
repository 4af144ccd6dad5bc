"""The command line as its users see it, in a process of its own: JSON at stdout.

Run by its path, so that helps name the program; with COLUMNS and the like in the environment, which
rich reads once at import.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from internvl_chat.cli.command import VERBS, _make_app, main
from internvl_chat.train import parsing

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "pretrained/internvl-chat-tiny")
META = str(ROOT / "shell/data/internvl_1_2_finetune.json")

TRAIN = ["train", "--output_dir", "run", "--meta_path", META]
WRONG_USES: dict[str, list[str]] = {
    "nothing": [],
    "unknown verb": ["nosuch"],
    "unknown option of all verbs": ["--nosuch"],
    "data without a verb": ["data"],
    "unknown verb of data": ["data", "nosuch"],
    "preview without a meta": ["data", "preview"],
    "preview without a tokenizer": ["data", "preview", META],
    "preview of a missing meta": ["data", "preview", "no/such.json", "--model", TINY],
    "preview with a missing model": ["data", "preview", META, "--model", "no/such"],
    "unknown template": ["data", "preview", META, "--model", TINY, "--conv-style", "nosuch"],
    "number out of range": ["data", "preview", META, "--model", TINY, "--max-seq-length", "0"],
    "no number": ["data", "index", META, "--model", TINY, "--max-seq-length", "many"],
    "index of missing files": ["data", "index", META, "--model", TINY],
    "json2jsonl of a missing file": ["json2jsonl", "no/such.json"],
    "chat without a model": ["chat", "What?"],
    "chat with a missing model": ["chat", "--model", "no/such", "What?"],
    "chat with a missing image": ["chat", "--model", TINY, "--image", "no.png", "What?"],
    "batch without out": ["chat", "--model", TINY, "--batch", "questions.jsonl"],
    "batch with a question": ["chat", "--model", TINY, "--batch", "a", "--out", "b", "What?"],
    "misspelt option": ["chat", "--modle", TINY],
    "demo without a model": ["demo"],
    "demo at no port": ["demo", "--model", TINY, "--port", "99999"],
    "serve with an empty key": ["serve", "--model", TINY, "--api-key", ""],
    "serve with no queue": ["serve", "--model", TINY, "--max-queue", "0"],
    "merge-lora of a missing directory": ["merge-lora", "no/such", "out"],
    "merge-lora of no adapter": ["merge-lora", TINY, "out"],
    "merge-lora with an unknown check": ["merge-lora", TINY, "out", "--check", "nosuch"],
    "extract of an unknown part": ["extract", "nosuch", TINY, "out"],
    "extract into what exists": ["extract", "vit", TINY, "."],
    "replace-llm with a missing one": ["replace-llm", TINY, "no/such", "out"],
    "resize to an odd size": ["resize-pos-embed", TINY, "out", "13"],
    "export in an unknown layout": ["export", TINY, "out", "--layout", "nosuch"],
    "export in an unknown dtype": ["export", TINY, "out", "--dtype", "int3"],
    "export in shards of no size": ["export", TINY, "out", "--max-shard-size", "big"],
    "train without arguments": ["train"],
    "train with an unknown argument": [*TRAIN, "--learning_rat", "1"],
    "train with a bad number": [*TRAIN, "--max_steps", "many"],
    "train with two contradictions": [
        *TRAIN,
        *("--model_name_or_path", "a", "--vision_path", "b"),
        *("--load_best_model_at_end", "True", "--use_llm_lora", "4"),
    ],
    "train on missing files": [*TRAIN, "--model_name_or_path", "no/such"],
    "train with a missing meta": [*TRAIN, "--model_name_or_path", TINY, "--meta_path", "no.json"],
    "train on missing data": [*TRAIN, "--model_name_or_path", TINY],
    "train with an unknown template": [
        *(*TRAIN, "--model_name_or_path", TINY),
        *("--conv_style", "nosuch"),
    ],
    "train with a missing argument file": ["train", "no/such.yaml"],
    "train with a missing ZeRO file": [
        *(*TRAIN, "--model_name_or_path", TINY),
        *("--deepspeed", "no/such.json"),
    ],
}


def commands() -> Iterator[tuple[list[str], Any]]:
    """The words of every verb with its command object; the whole program has none."""

    def walk(words: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk([*words, name], inner)

    yield [], typer.main.get_command(_make_app())
    for verb in VERBS:
        app = import_module(f"internvl_chat.cli.{verb.replace('-', '_')}").app
        yield from walk([verb], typer.main.get_command(app))


def told(argv: Sequence[str]) -> dict[str, Any]:
    """Exit code, stdout and stderr of the program with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    logging.getLogger().handlers.clear()  # they hold the stderr of this call
    return {"exit_code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


def option_of_verb(parameter: Any) -> dict[str, Any]:
    """What decides the meaning of an option or argument; not its help."""
    kind = parameter.type_descriptor.annotation
    fields = {
        "kind": parameter.param_type_name,
        "names": [*parameter.opts, *parameter.secondary_opts],
        "type": getattr(kind, "__name__", str(kind)),
        "default": parameter.default,
        "required": parameter.required,
        "multiple": parameter.multiple,
        "min": parameter.min,
        "max": parameter.max,
        "envvar": parameter.envvar,
        "hidden": parameter.hidden,
    }
    return {name: value for name, value in fields.items() if value not in (None, False)}


def option_of_train(action: Any) -> dict[str, Any]:
    """As :func:`option_of_verb` for an argument of ``train``."""
    fields = {
        "names": action.option_strings,
        "dest": action.dest,
        "nargs": action.nargs,
        "default": None if action.default is SUPPRESS else action.default,
        "const": action.const,
        "choices": list(action.choices) if action.choices is not None else None,
        "required": action.required,
    }
    kept = {name: value for name, value in fields.items() if value is not None}
    return {name: value for name, value in kept.items() if (name, value) != ("required", False)}


def options() -> dict[str, Any]:
    """By verb, the options and arguments in their order."""
    found = {
        " ".join(["internvl-chat", *words]): [option_of_verb(p) for p in command.params]
        for words, command in commands()
    }
    parser = parsing._parser()
    found["internvl-chat train"] = [option_of_train(action) for action in parser._actions]
    return found


def surface() -> dict[str, Any]:
    """Helps by verb, options by verb, and what wrong uses lead to."""
    return {
        "help": {
            "-".join(["internvl-chat", *words]): told([*words, "--help"]) for words, _ in commands()
        },
        "options": options(),
        "wrong": {name: told(argv) for name, argv in WRONG_USES.items()},
    }


if __name__ == "__main__":
    sys.argv = ["internvl-chat"]  # helps show it
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        result = surface()
        os.chdir("/")
    print(json.dumps(result, default=str))
