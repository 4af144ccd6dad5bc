"""``internvl-chat recipes``: the files to start from, out of the installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvl_chat.cli.options import Json, echo_report, verb_app
from internvl_chat.errors import ConfigError
from internvl_chat.resources import copy_resources, resource_root, zero_files
from internvl_chat.shipped import shipped_files

app = verb_app()


@app.command()
def recipes(
    folder: Annotated[Path | None, typer.Argument(help="Folder to write into.")] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Name the files, and what --deepspeed knows by name.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write recipes, DeepSpeed files, metas and example configurations to start from.

    Example: internvl-chat recipes my_recipes

    They are run as in a clone, sh shell/internvl1.2/…/….sh, and use the installed package. A file
    that is there already is never overwritten: one that differs is named and left as it is.

    Exit codes: 0 all files are there, 1 some are there with another content, 2 wrong use.
    """
    if listed == (folder is not None):
        raise ConfigError("want a folder to write into, or --list", where="recipes")
    if folder is None:
        _list(as_json)
        return
    copied = copy_resources(folder)
    total = len(copied.written) + len(copied.same) + len(copied.kept)
    text = f"{len(copied.written)} of {total} files written"
    if copied.same:
        text += f", {len(copied.same)} there already"
    if copied.kept:
        names = "\n  ".join(copied.kept)
        text += f", {len(copied.kept)} left that differ:\n  {names}\nWrite into another folder"
        text += " to compare, or move them away"
    echo_report(text, copied, str(folder), as_json)
    raise typer.Exit(1 if copied.kept else 0)


def _list(as_json: bool) -> None:
    root = resource_root()
    files, zero = shipped_files(root), zero_files()
    names = {name: path.relative_to(root).as_posix() for name, path in zero.items()}
    if as_json:
        echo_report("", {"files": files, "deepspeed": names}, str(root), as_json)
        return
    for file in files:
        typer.echo(file)
    typer.echo("\n--deepspeed by name:")
    for name, path in names.items():
        typer.echo(f"  {name:<14} {path}")
