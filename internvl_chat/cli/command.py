"""The ``internvl-chat`` command: a table of verbs, and the way to their modules.

``internvl-chat VERB …`` is ``internvl_chat/cli/VERB.py``, imported when it is asked for: with typer
alone, help and a mistyped verb are answered at once.

Exit codes: 0 done, 1 ran and found problems, 2 wrong use, 3 data policy violated; ``train`` has
more (docs/training.md).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from internvl_chat.errors import UserError
from internvl_chat.quiet import is_verbose, set_up_output
from internvl_chat.train.launched import leave_reason

DOWNLOADS = "internvl_chat.checkpoint.hub"
"""Logger that tells what is fetched and how far it has come: always shown."""

VERBS = {
    "train": (
        "Fine-tune; the same arguments as internvl_chat/train/finetune.py, or one YAML/JSON file."
    ),
    "recipes": "Write recipes, DeepSpeed files, metas and example configurations to start from.",
    "status": "Tell what became of a training, and what it would go on from.",
    "json2jsonl": "Turn an annotation file that is one JSON array into JSONL, a record a line.",
    "chat": "Ask a model about images and videos.",
    "demo": (
        "Open a page for asking about images and videos, with streamed answers and drawn boxes."
    ),
    "serve": "Serve a model to clients of OpenAI's chat completions.",
    "merge-lora": "Merge a LoRA adapter into the weights of its base model.",
    "extract": "Take vision tower, projector or language model out of a checkpoint.",
    "replace-llm": (
        "Put another language model behind the vision tower; the result is to be trained."
    ),
    "resize-pos-embed": "Lay the position embeddings out for another image size.",
    "export": "Write a checkpoint in another layout, dtype or file size; LoRA weights are merged.",
    "data": "Look at training data as the model sees it.",
    "eval": "Ask benchmarks, and score answers.",
}
"""Verb -> its line in the help, which is also the first paragraph of the verb's own help."""


class _Verb(TyperCommand):
    """A command that leaves its arguments, ``--help`` and ``--`` included, to its module."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments as they were typed."""
        ctx.args = list(args)
        return ctx.args


def _root(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log more; what libraries say, too.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose or is_verbose() else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger(DOWNLOADS).setLevel(logging.INFO)
    set_up_output(verbose=verbose)


def _hand_over(context: typer.Context) -> int:
    """Run the verb that ``context`` names; returns its exit code."""
    verb = str(context.info_name)
    app = import_module(f"internvl_chat.cli.{verb.replace('-', '_')}").app
    try:
        code = app(args=context.args, prog_name=context.command_path, standalone_mode=False)
    except UserError as err:
        typer.echo(f"error: {err}", err=True)
        leave_reason(f"error: {err}")
        return err.exit_code
    return int(code or 0)


def _make_app() -> typer.Typer:
    app = typer.Typer(
        name="internvl-chat",
        help="Fine-tune vision-language models of the InternVL-Chat-V1.2 family.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for verb, line in VERBS.items():
        app.command(verb, cls=_Verb, help=line, add_help_option=False)(_hand_over)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` if None.
    """
    try:
        code = _make_app()(args=list(argv) if argv is not None else None, standalone_mode=False)
    except typer.Exit as err:
        return err.exit_code
    except typer.Abort:
        return 130
    except typer.TyperException as err:  # wrong use: an unknown verb, option or value
        problem = err.format_message().rstrip(".")  # names the option
        if problem:  # empty where the help was shown instead
            stop = "" if problem.endswith("?") else "."
            typer.echo(f"error: {problem}{stop} See internvl-chat --help.", err=True)
        return 2
    return int(code or 0)
