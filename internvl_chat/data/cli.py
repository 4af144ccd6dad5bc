"""``internvl-chat data …``: the data path at the command line, thin."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)
