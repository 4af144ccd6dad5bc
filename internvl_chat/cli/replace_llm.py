"""``internvl-chat replace-llm``: another language model behind the vision tower."""

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
def replace_llm(
    checkpoint: Checkpoint,
    llm: Annotated[str, typer.Argument(help="Checkpoint of the new language model.")],
    output_dir: Output,
    template: Annotated[
        str | None, typer.Option(help="Its chat template; as before by default.")
    ] = None,
    new_mlp: Annotated[bool, typer.Option(help="A new projector, of random numbers.")] = False,
    seed: Annotated[int, typer.Option(help="Of these numbers.")] = 0,
    max_shard_size: Shard = "5GB",
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Put another language model behind the vision tower; the result is to be trained.

    Example: internvl-chat replace-llm pretrained/internvl-chat-tiny
    pretrained/SmolLM2-135M-Instruct work_dirs/new --template smollm2 --new-mlp
    """
    from internvl_chat.checkpoint.surgery.replace import replace_llm as replace

    with progress_bar() as progress:
        report = replace(
            checkpoint,
            llm,
            output_dir,
            template=template,
            new_mlp=new_mlp,
            seed=seed,
            dtype=parse_dtype(dtype),
            max_shard_bytes=parse_size(max_shard_size),
            progress=progress,
        )
    projector = "a new projector" if report.new_projector else "the former projector"
    echo_report(f"{report.new_tokens} tokens added, {projector}", report, output_dir, as_json)
