"""``internvl-chat export``: another layout, dtype or file size."""

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
from internvl_chat.errors import ConfigError

app = verb_app()


@app.command()
def export(
    checkpoint: Checkpoint,
    output_dir: Output,
    layout: Annotated[
        str, typer.Option(help="internvl_chat (as published), or native (transformers' class).")
    ] = "internvl_chat",
    code: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Published checkpoint whose code files, configuration and tokenizer go along; "
            "base: the one that training began with.",
        ),
    ] = None,
    adapter_for: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Keep the LoRA apart: an adapter for its base model that was exported, a "
            "directory or on the hub.",
        ),
    ] = None,
    max_shard_size: Shard = "5GB",
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint in another layout, dtype or file size; LoRA weights are merged.

    Example: internvl-chat export work_dirs/my_lora work_dirs/published --dtype bfloat16
    """
    if adapter_for is not None:
        given = {"--layout": layout, "--code": code, "--dtype": dtype}
        _refuse_without_effect({**given, "--max-shard-size": max_shard_size})
        _export_adapter(checkpoint, output_dir, adapter_for, as_json)
        return
    from internvl_chat.checkpoint.surgery.export import export as write

    with progress_bar() as progress:
        report = write(
            checkpoint,
            output_dir,
            layout=layout,
            code=code,
            dtype=parse_dtype(dtype),
            max_shard_bytes=parse_size(max_shard_size),
            progress=progress,
        )
    text = f"{report.tensors} tensors written and compared"
    if report.merged:
        text += f", LoRA merged into {report.merged} of them"
    if report.logits is not None:
        text += f"; the written model was run: its logits differ by at most {report.logits:.1e}"
    echo_report(text, report, output_dir, as_json)


def _refuse_without_effect(given: dict[str, str | None]) -> None:
    """Raises:
    ConfigError: an option of whole models says something beside ``--adapter-for``.
    """
    for option, value in given.items():
        if value not in (None, "internvl_chat", "5GB"):
            raise ConfigError(
                f"says nothing of an adapter ({value}): layout, code and files are its base's",
                where=option,
                fix=f"Leave out {option}, or --adapter-for to merge the LoRA.",
            )


def _export_adapter(checkpoint: str, output_dir: str, base: str, as_json: bool) -> None:
    from internvl_chat.checkpoint.surgery.adapter_layout import export_adapter

    report = export_adapter(checkpoint, output_dir, base=base)
    text = f"an adapter for {base}"
    if report.logits is not None:
        text += f"; PEFT put it on: logits differ by at most {report.logits:.1e}"
    echo_report(text, report, output_dir, as_json)
