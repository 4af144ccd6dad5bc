"""``internvl-chat env``: what this installation can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from internvl_chat import __version__
from internvl_chat.cli.options import Json, verb_app
from internvl_chat.machine.report import as_markdown, as_text, gather
from internvl_chat.resources import resource_root
from internvl_chat.train.versions import git_revision

app = verb_app()


@app.command()
def env(
    as_json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="To be pasted into a bug report.")
    ] = False,
    imports: Annotated[
        bool,
        typer.Option("--imports", help="Import every package to see whether it works; slower."),
    ] = False,
) -> None:
    """Tell versions, hardware, kernels, and what is missing; for yourself or a bug report.

    A package that is broken is a line of the report. Values of tokens and keys are not shown.

    Example: internvl-chat env --markdown
    """
    root = Path(__file__).resolve().parents[2]
    report = gather(
        git_revision(), root, __version__, resources=resource_root(), imports_all=imports
    )
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(as_markdown(report) if markdown else as_text(report))
