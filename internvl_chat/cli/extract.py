"""``internvl-chat extract``: a part of a checkpoint on its own."""

from __future__ import annotations

from typing import Annotated

import typer

from internvl_chat.cli.options import (
    Checkpoint,
    DType,
    Json,
    Shard,
    echo_report,
    parse_dtype,
    parse_size,
    progress_bar,
    verb_app,
)

app = verb_app()


@app.command()
def extract(
    part: Annotated[str, typer.Argument(help="vit, mlp or llm.")],
    checkpoint: Checkpoint,
    output: Annotated[str, typer.Argument(help="New directory; for mlp a .safetensors or .pth.")],
    max_shard_size: Shard = "5GB",
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Take vision tower, projector or language model out of a checkpoint.

    Example: internvl-chat extract mlp pretrained/internvl-chat-tiny work_dirs/mlp.safetensors
    """
    from internvl_chat.checkpoint.surgery.extract import extract as take

    with progress_bar() as progress:
        count = take(
            part,
            checkpoint,
            output,
            dtype=parse_dtype(dtype),
            max_shard_bytes=parse_size(max_shard_size),
            progress=progress,
        )
    echo_report(f"{count} tensors written and compared", {"tensors": count}, output, as_json)
