"""``internvl-chat data check``: options in, :class:`DataCheck` run, findings out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl_chat.cli.options import local_settings
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    from internvl_chat.config import DataConfig
    from internvl_chat.data.check.run import Progress

_PATCH_PIXELS = 14  # of the published models

Decode = Annotated[bool, typer.Option("--decode", help="Open and decode images and videos.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        "--model",
        metavar="CKPT",
        help="Count tokens: a chat checkpoint, which also gives template and images, or a bare "
        "tokenizer.",
    ),
]
Findings = Annotated[bool, typer.Option("--json", help="One JSON object a finding.")]
Fix = Annotated[
    Path | None,
    typer.Option(metavar="OUT", help="Write a cleaned copy and what was changed: a new folder."),
]


def check(
    context: typer.Context,
    meta: Annotated[Path, typer.Argument(help="Meta JSON: the datasets.")],
    decode: Decode = False,
    tokenizer: Checkpoint = None,
    as_json: Findings = False,
    fix: Fix = None,
) -> None:
    """Check every record as training reads it: what is wrong, where, and how to mend it.

    Training's own data flags are accepted too (--conv_style, --max_seq_length, --strict_root, ...).
    Exit code 1 if there is an error, 0 with warnings only; codes are in docs/data_checks.md.

    Example: internvl-chat data check meta.json --decode --tokenizer pretrained/internvl-chat-tiny
    """
    from internvl_chat.data.check import report
    from internvl_chat.data.check.cleaning import Cleaner
    from internvl_chat.data.check.run import DataCheck

    if not meta.is_file():
        problem = "is a directory" if meta.is_dir() else "no such meta file"
        raise ConfigError(problem, where=str(meta), fix="Name a meta JSON file.")
    config, loaded = check_settings(str(meta), tokenizer, context.args)
    cleaner = None if fix is None else Cleaner(fix)
    examples = report.Examples()
    with _progress() as progress:
        run = DataCheck(config, tokenizer=loaded, decode=decode, progress=progress, cleaner=cleaner)
        for one in run.findings():
            examples.add(one)
            if as_json:
                typer.echo(report.as_json(one))
    if not as_json:
        if run.datasets:
            typer.echo(report.counts_table([dataset.counts for dataset in run.datasets]))
        told = examples.as_text()
        typer.echo(f"\n{told}\n" if told else "")
        typer.echo(f"{run.num_errors} errors, {run.num_warnings} warnings")
    if run.summary:
        typer.echo(f"\n{run.summary}", err=as_json)
    raise typer.Exit(1 if run.num_errors else 0)


def check_settings(
    meta: str, tokenizer: Path | None, flags: Sequence[str]
) -> tuple[DataConfig, Any]:
    """What a run with these flags would be told, and its tokenizer."""
    from internvl_chat.checkpoint.tokenizer import check_template_tokens
    from internvl_chat.train.parsing import data_flags

    tokenizer = local_settings(tokenizer)
    config, loaded = job_settings(
        meta, data_flags(flags), checkpoint=tokenizer, tokenizer=tokenizer
    )
    if loaded is not None:
        check_template_tokens(loaded, config.encode.conv_style)
    return config, loaded


def job_settings(
    meta: str, given: Mapping[str, Any], *, checkpoint: Path | None, tokenizer: Path | None
) -> tuple[DataConfig, Any]:
    """What a run with these data flags is told, and its tokenizer.

    Flags go before the checkpoint, the checkpoint before the defaults.
    """
    from internvl_chat.model.configuration_internvl_chat import num_image_token
    from internvl_chat.model.templates import find_template
    from internvl_chat.train.arguments import DataArguments, data_config

    stored: dict[str, Any] = {}
    patch, loaded, system_message = _PATCH_PIXELS, None, None
    if checkpoint is not None:
        stored, patch, system_message = _stored(checkpoint)
    arguments = DataArguments(**{**stored, **given, "meta_path": meta})
    tokens = num_image_token(arguments.force_image_size, patch, arguments.down_sample_ratio)
    config = data_config(
        arguments,
        num_image_token=max(tokens, 1),
        meta_path=meta,
        system_message=system_message,
    )
    find_template(config.encode.conv_style)  # an unknown one is found before files are read
    if tokenizer is not None:
        from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer

        loaded = load_tokenizer(str(tokenizer))
        add_special_tokens(loaded)
    return config, loaded


def _stored(checkpoint: Path) -> tuple[dict[str, Any], int, str | None]:
    """(data flags that the checkpoint keeps, side of a patch in pixels, its system message)."""
    from dataclasses import fields

    from internvl_chat.checkpoint.sources import is_bare_adapter, read_chat_config, read_json
    from internvl_chat.train.arguments import DataArguments
    from internvl_chat.train.inherited import kept_by, system_message_of

    stored = checkpoint / "config.json"
    model_type = read_json(stored).get("model_type") if stored.is_file() else None
    if not is_bare_adapter(checkpoint) and model_type != "internvl_chat":
        return {}, _PATCH_PIXELS, None  # a tokenizer, perhaps a language model's
    patch = int(read_chat_config(checkpoint).vision_config.patch_size)
    names = {field.name for field in fields(DataArguments)}
    kept = {flag: value for flag, value in kept_by(str(checkpoint)).items() if flag in names}
    return kept, patch, system_message_of(str(checkpoint))


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("checking")

        def update(dataset: str, done: int, total: int) -> None:
            bar.update(task, description=f"checking {dataset}", completed=done, total=total)

        yield update
