"""The ``internvl-chat`` command: one thin verb per capability.

Verbs import what they need when they run. Exit codes:
0 done, 1 ran and found problems, 2 wrong use, 3 data policy violated; ``train`` has more
(see docs/training.md).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from internvl_chat.cli.chat import chat
from internvl_chat.cli.data import app as data_app
from internvl_chat.cli.demo import demo
from internvl_chat.cli.export import export
from internvl_chat.cli.extract import extract
from internvl_chat.cli.json2jsonl import json2jsonl
from internvl_chat.cli.merge_lora import merge_lora
from internvl_chat.cli.replace_llm import replace_llm
from internvl_chat.cli.resize_pos_embed import resize_pos_embed
from internvl_chat.cli.serve import serve
from internvl_chat.cli.train import train
from internvl_chat.errors import UserError

app = typer.Typer(
    name="internvl-chat",
    help="Fine-tune vision-language models of the InternVL-Chat-V1.2 family.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    if not verbose:  # warns of a kernel for 4 bits on CPUs that nobody asked for
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train)
app.add_typer(data_app, name="data", help="Look at training data as the model sees it.")
app.command()(json2jsonl)
app.command()(chat)
app.command()(demo)
app.command()(serve)
app.command()(merge_lora)
app.command()(extract)
app.command()(replace_llm)
app.command()(resize_pos_embed)
app.command()(export)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` if None.
    """
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False)
    except UserError as err:
        typer.echo(f"error: {err}", err=True)
        return err.exit_code
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


if __name__ == "__main__":
    sys.exit(main())
