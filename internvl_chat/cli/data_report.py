"""``internvl-chat data report``: options in, :class:`DataReport` run, a page out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvl_chat.cli.data_check import check_settings
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.data.report.run import Progress

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "--tokenizer",
        metavar="CKPT",
        help="A chat checkpoint, which also gives template and images, or a bare tokenizer.",
    ),
]


def report(
    context: typer.Context,
    meta: Annotated[Path, typer.Argument(help="Meta JSON: the datasets.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="HTML", help="The page.")
    ] = Path("report.html"),
    model: Checkpoint = None,
    samples: Annotated[int, typer.Option(help="Records to look at.", min=0)] = 200,
    seed: Annotated[int, typer.Option(help="Of their choice.")] = 0,
) -> None:
    """Write a page to look at: counts, histograms, samples with boxes and what of them is learned.

    One file that needs no network. Training's own data flags are accepted too (--conv_style,
    --max_seq_length, --dynamic_image_size, ...). An earlier report of that name is replaced.

    Example: internvl-chat data report meta.json -o look.html --model pretrained/internvl-chat-tiny
    """
    from internvl_chat.data.report.page import check_output
    from internvl_chat.data.report.run import DataReport

    if model is None:
        raise ConfigError("no tokenizer is named", fix="Give --model DIR or --tokenizer DIR.")
    check_output(output)
    config, tokenizer = check_settings(str(meta), model, context.args)
    with _progress() as progress:
        written = DataReport(
            config,
            tokenizer,
            num_samples=samples,
            seed=seed,
            settings=[("tokenizer", str(model))],
            progress=progress,
        ).write(output)
    typer.echo(
        f"{written.path}: {written.num_shown} samples of {written.num_datasets} datasets, "
        f"{written.num_bad} bad records, {written.num_bytes / 1e6:.1f} MB. Open it in a browser."
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr where that is a terminal, from the first news on: counting has its own."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bar = Bar(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("reading")

    def update(what: str, done: int, total: int) -> None:
        bar.start()
        bar.update(task, description=what, completed=done, total=total)

    try:
        yield update
    finally:
        bar.stop()
