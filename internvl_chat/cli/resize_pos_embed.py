"""``internvl-chat resize-pos-embed``: position embeddings for another image size."""

from __future__ import annotations

from typing import Annotated

import typer

from internvl_chat.cli.options import (
    Checkpoint,
    DType,
    Json,
    Output,
    Shard,
    echo_report,
    parse_dtype,
    parse_size,
    progress_bar,
    verb_app,
)

app = verb_app()


@app.command()
def resize_pos_embed(
    checkpoint: Checkpoint,
    output_dir: Output,
    image_size: Annotated[int, typer.Argument(help="Side of a tile in pixels.")] = 448,
    max_shard_size: Shard = "5GB",
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Lay the position embeddings out for another image size.

    Example: internvl-chat resize-pos-embed pretrained/internvl-chat-tiny work_dirs/larger 448
    """
    from internvl_chat.checkpoint.surgery.resize import resize_pos_embed as resize

    with progress_bar() as progress:
        report = resize(
            checkpoint,
            output_dir,
            image_size,
            dtype=parse_dtype(dtype),
            max_shard_bytes=parse_size(max_shard_size),
            progress=progress,
        )
    text = (
        f"{report.old_image_size} -> {report.new_image_size} pixels, a tile takes "
        f"{report.num_image_token} tokens"
    )
    echo_report(text, report, output_dir, as_json)
