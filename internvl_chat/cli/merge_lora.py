"""``internvl-chat merge-lora``: an adapter merged into its base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from internvl_chat.cli.options import (
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

if TYPE_CHECKING:
    from internvl_chat.checkpoint.surgery.merge import MergeReport

app = verb_app()


@app.command()
def merge_lora(
    checkpoint: Annotated[str, typer.Argument(help="Adapter, or a checkpoint with LoRA inside.")],
    output_dir: Output,
    max_shard_size: Shard = "5GB",
    dtype: DType = None,
    check: Annotated[
        str, typer.Option(help="auto; logits: run both models; weights: compare weights only.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Merge a LoRA adapter into the weights of its base model.

    Example: internvl-chat merge-lora work_dirs/my_lora work_dirs/my_merged

    In the memory of one weight file. The result is compared with the adapter before it gets its
    name, and nothing is overwritten.
    """
    from internvl_chat.checkpoint.surgery.merge import merge_lora as merge

    if check not in ("auto", "logits", "weights"):
        raise ConfigError(f"{check!r} is no check", where="--check", fix="auto, logits or weights.")
    with progress_bar() as progress:
        report = merge(
            checkpoint,
            output_dir,
            dtype=parse_dtype(dtype),
            max_shard_bytes=parse_size(max_shard_size),
            check=check,  # type: ignore[arg-type]
            progress=progress,
        )
    echo_report(describe(report), report, output_dir, as_json)


def describe(report: MergeReport) -> str:
    """The verdict, then the figures that it rests on."""
    checked = f"{report.merged} weights merged, each compared with base and adapter"
    if report.logits is None:
        return f"OK: {checked}; the models were not run"
    exact, stored, effect = report.logits.exact, report.logits.stored, report.logits.effect
    figures = (
        f"largest differences of logits: {exact:.1e} by the merge, {stored:.1e} with the rounding "
        f"of the stored weights, {effect:.1e} without the adapter"
    )
    if report.logits.effect_is_lost:
        return f"CHECK: {checked}, but rounding hides what the adapter does. {figures}"
    return f"OK: {checked}, and the merged model answers as base and adapter do. {figures}"
