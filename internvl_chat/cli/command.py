"""The ``internvl-chat`` command: a table of verbs, and the way to their modules.

``internvl-chat VERB …`` is ``internvl_chat/cli/VERB.py``, imported when it is asked for: with typer
alone, help and a mistyped verb are answered at once.

Exit codes: 0 done, 1 ran and found problems, 2 wrong use, 3 data policy violated; ``train`` has
more (docs/training.md).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from internvl_chat import __version__
from internvl_chat.checkpoint.hub_progress import show_downloads
from internvl_chat.cli.completion import completed_command
from internvl_chat.cli.options import HELP
from internvl_chat.errors import UserError
from internvl_chat.quiet import is_verbose, set_up_output
from internvl_chat.train.launched import leave_reason

PROGRAM = "internvl-chat"

VERBS = {
    "train": (
        "Fine-tune; the same arguments as internvl_chat/train/finetune.py, or one YAML/JSON file."
    ),
    "plan": "Tell what a training needs: memory by part, steps, hours, disk, and what to change.",
    "status": "Tell what became of a training, and what it would go on from.",
    "data": "Look at training data as the model sees it.",
    "json2jsonl": "Turn an annotation file that is one JSON array into JSONL, a record a line.",
    "chat": "Ask a model about images and videos.",
    "demo": (
        "Open a page for asking about images and videos, with streamed answers and drawn boxes."
    ),
    "serve": "Serve a model to clients of OpenAI's chat completions.",
    "eval": "Ask benchmarks, and score answers.",
    "merge-lora": "Merge a LoRA adapter into the weights of its base model.",
    "extract": "Take vision tower, projector or language model out of a checkpoint.",
    "replace-llm": (
        "Put another language model behind the vision tower; the result is to be trained."
    ),
    "resize-pos-embed": "Lay the position embeddings out for another image size.",
    "export": "Write a checkpoint in another layout, dtype or file size; LoRA weights are merged.",
    "recipes": "Write recipes, DeepSpeed files, metas and example configurations to start from.",
    "env": "Tell versions, hardware, kernels, and what is missing; for yourself or a bug report.",
}
"""Verb -> its line in the help, which is also the first paragraph of the verb's own help."""

PANELS = {
    "Training": ("train", "plan", "status"),
    "Data": ("data", "json2jsonl"),
    "Using a model": ("chat", "demo", "serve"),
    "Evaluation": ("eval",),
    "Checkpoints": ("merge-lora", "extract", "replace-llm", "resize-pos-embed", "export"),
    "This installation": ("recipes", "env"),
}
"""How the help groups them, in the order of ``VERBS``."""


class _Verb(TyperCommand):
    """A command that leaves its arguments, ``--help`` and ``--`` included, to its module."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments as they were typed."""
        ctx.args = list(args)
        return ctx.args


class _Verbs(TyperGroup):
    """The table of verbs; who completes a command line gets the verb's own command."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; with ``resilient_parsing`` a shell asks what it takes."""
        found = super().get_command(ctx, cmd_name)
        if found is None or not ctx.resilient_parsing:
            return found
        return completed_command(cmd_name, _module(cmd_name).app)


def _module(verb: str) -> Any:
    return import_module(f"internvl_chat.cli.{verb.replace('-', '_')}")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"internvl-chat {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Show the version.", callback=_show_version, is_eager=True
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log more; what libraries say, too.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose or is_verbose() else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    show_downloads()
    set_up_output(verbose=verbose)


def _hand_over(context: typer.Context) -> int:
    """Run the verb that ``context`` names; returns its exit code."""
    verb = str(context.info_name)
    app = _module(verb).app
    try:
        code = app(args=context.args, prog_name=context.command_path, standalone_mode=False)
    except UserError as err:
        typer.echo(f"error: {err}", err=True)
        leave_reason(f"error: {err}")
        return err.exit_code
    return int(code or 0)


def _make_app() -> typer.Typer:
    app = typer.Typer(
        name=PROGRAM,
        help="Fine-tune vision-language models of the InternVL-Chat-V1.2 family.",
        epilog="internvl-chat VERB -h tells a verb's options. Pages: README.md and docs/.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=HELP,
        cls=_Verbs,
    )
    app.callback()(_root)
    panels = {verb: panel for panel, verbs in PANELS.items() for verb in verbs}
    for verb, line in VERBS.items():
        app.command(
            verb, cls=_Verb, help=line, add_help_option=False, rich_help_panel=panels.get(verb)
        )(_hand_over)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` if None.
    """
    try:
        code = _make_app()(
            args=list(argv) if argv is not None else None,
            prog_name=PROGRAM,  # however it is started: helps and shells name it
            standalone_mode=False,
        )
    except typer.Exit as err:
        return err.exit_code
    except typer.Abort:
        return 130
    except typer.TyperException as err:  # wrong use: an unknown verb, option or value
        problem = err.format_message().rstrip(".")  # names the option
        if problem:  # empty where the help was shown instead
            stop = "" if problem.endswith("?") else "."
            path = getattr(getattr(err, "ctx", None), "command_path", PROGRAM)
            typer.echo(f"error: {problem}{stop} See {path} --help.", err=True)
        return 2
    except OSError as err:  # typer writes into the home folder; a verb's own errors are its own
        if "--install-completion" not in (sys.argv[1:] if argv is None else argv):
            raise
        problem = f"{err.filename or 'the home folder'} cannot be written: {err.strerror}"
        fix = "--show-completion prints what the shell is to read."
        typer.echo(f"error: --install-completion: {problem}. {fix}", err=True)
        return 2
    return int(code or 0)
