"""``internvl-chat json2jsonl``: one JSON array -> a record a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvl_chat.cli.options import cleaned_up_when_terminated, verb_app

app = verb_app()


@app.command()
def json2jsonl(
    source: Annotated[Path, typer.Argument(help="JSON file: an array of records.")],
    target: Annotated[
        Path | None, typer.Argument(help="New JSONL file; beside the source by default.")
    ] = None,
) -> None:
    """Turn an annotation file that is one JSON array into JSONL, a record a line.

    Example: internvl-chat json2jsonl llava_instruct_150k.json
    """
    from internvl_chat.data.json2jsonl import convert

    target = source.with_suffix(".jsonl") if target is None else target
    with cleaned_up_when_terminated():
        count = convert(source, target)
    typer.echo(f"{target}: {count} records written and compared.")
