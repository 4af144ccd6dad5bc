"""``internvl-chat status``: what became of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from internvl_chat.cli.options import Json, verb_app

app = verb_app()


@app.command()
def status(
    output_dir: Annotated[Path, typer.Argument(help="OUTPUT_DIR of the training.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Checkpoints by the sizes of their files only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what became of a training, and what it would go on from.

    Example: internvl-chat status work_dirs/run

    A training that was killed has said nothing: it is found by its process, or, on another machine,
    by its last sign of life. Nothing is written.

    Exit codes: 0 complete, 1 failed, 2 no training there, 3 running, 4 interrupted or saved.
    """
    from internvl_chat.train.standing import read_standing

    found = read_standing(output_dir, deep=not quick)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        typer.echo(found.as_text())
    raise typer.Exit(found.exit_code)
