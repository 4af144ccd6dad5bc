"""``internvl-chat data …``: the data path at the command line, thin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl_chat.cli import data_author
from internvl_chat.cli.data_check import check
from internvl_chat.cli.data_report import report
from internvl_chat.cli.options import (
    INSTALLED_VIDEO_READER,
    VideoReader,
    local_settings,
    verb_app,
)

if TYPE_CHECKING:
    from internvl_chat.config import DataConfig

_PUBLISHED_TOKENS = 256  # a tile of the published models: 448 pixels, patches of 14, ratio 0.5

app = verb_app(has_verbs=True)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(check)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(report)
data_author.register(app)

Meta = Annotated[Path, typer.Argument(help="Meta JSON: the datasets.")]
Model = Annotated[
    Path | None,
    typer.Option(help="Chat checkpoint: takes tokenizer, template and image settings from it."),
]
Tokenizer = Annotated[Path | None, typer.Option(help="Tokenizer directory.")]
ConvStyle = Annotated[str | None, typer.Option(help="Chat template; Hermes-2 by default.")]
NumImageToken = Annotated[
    int | None, typer.Option(help="Tokens per image tile; 256 by default.", min=1)
]
MaxSeqLength = Annotated[int, typer.Option(help="Longer samples are cut.", min=1)]
ImageSize = Annotated[int | None, typer.Option(help="Side of a tile; 448 by default.", min=1)]


@app.callback()
def _root() -> None:
    """Look at training data as the model sees it."""


@app.command()
def preview(
    meta: Meta,
    dataset: Annotated[
        str | None, typer.Option(help="Name in the meta; needed if there are several.")
    ] = None,
    index: Annotated[str, typer.Option(help="Record i, or i:j, counted from 0.")] = "0",
    model: Model = None,
    tokenizer: Tokenizer = None,
    conv_style: ConvStyle = None,
    num_image_token: NumImageToken = None,
    max_seq_length: MaxSeqLength = 2048,
    force_image_size: ImageSize = None,
    video_backend: VideoReader = INSTALLED_VIDEO_READER,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show records exactly as training encodes them: ids, labels, text, image sizes.

    What is supervised is green; without colours (a file, a pipe, NO_COLOR) it stands in {+…+}.
    Records that training would skip are reported on stderr; the exit code is then 3.

    Example: internvl-chat data preview meta.json --model pretrained/internvl-chat-tiny --index 0:3
    """
    from rich.console import Console

    from internvl_chat.data.preview import preview as load
    from internvl_chat.data.schema import BadRecordError

    config, loaded_tokenizer = _config(
        meta,
        model,
        tokenizer,
        conv_style,
        num_image_token,
        max_seq_length,
        force_image_size,
        video_backend=video_backend,
    )
    previews = load(config, loaded_tokenizer, dataset=dataset, index=index)
    console, exit_code = Console(soft_wrap=True), 0
    marked = console.color_system is None or console.no_color
    while True:
        try:
            one = next(previews)
        except StopIteration:
            break
        except BadRecordError as err:
            typer.echo(f"error: {err}", err=True)
            exit_code = err.exit_code
            continue
        for remark in one.loaded.record.warnings:
            typer.echo(f"warning: {one.file}:{one.line}: {remark}", err=True)
        if as_json:
            typer.echo(json.dumps(one.as_dict(), ensure_ascii=False))
        else:
            console.print(one.as_text(loaded_tokenizer, marked=marked))
    raise typer.Exit(exit_code)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def index(
    context: typer.Context,
    meta: Meta,
    model: Model = None,
    tokenizer: Tokenizer = None,
    conv_style: ConvStyle = None,
    num_image_token: NumImageToken = None,
    max_seq_length: MaxSeqLength = 2048,
    force_image_size: ImageSize = None,
    video_backend: VideoReader = INSTALLED_VIDEO_READER,
    max_bad_ratio: Annotated[float, typer.Option(help="Tolerated share of bad records.")] = 0.01,
) -> None:
    """Index the annotation files and count their tokens ahead of a job, into the cache.

    Give it the data flags of the job (--dynamic_image_size True, ...): a job finds what was counted
    with the same flags, files and tokenizer. An interrupted count is continued.

    Example: internvl-chat data index meta.json --model pretrained/internvl-chat-tiny
    """
    import numpy as np

    from internvl_chat.data.build import build_train_dataset
    from internvl_chat.train.parsing import data_flags

    given = {
        "conv_style": conv_style,
        "force_image_size": force_image_size,
        "max_seq_length": max_seq_length,
        "video_backend": video_backend,
        "max_bad_ratio": max_bad_ratio,
    }
    given = {name: value for name, value in given.items() if value is not None}
    given |= data_flags(context.args)
    config, loaded_tokenizer = _job(meta, model, tokenizer, given, num_image_token)
    dataset = build_train_dataset(config, loaded_tokenizer, output_dir=None, seed=0)
    tokens = sum(int(v[v >= 0].sum(dtype=np.int64)) for _, v in dataset.lengths.blocks())
    typer.echo(
        f"{len(dataset)} samples of {len(dataset.dataset_names)} datasets, "
        f"{tokens} tokens, {dataset.bad_samples.total} bad records"
    )


def _job(
    meta: Path,
    model: Path | None,
    tokenizer: Path | None,
    given: dict[str, Any],
    num_image_token: int | None,
) -> tuple[DataConfig, Any]:
    """What a job with these data flags is told, and its tokenizer."""
    from dataclasses import replace

    from internvl_chat.cli.data_check import job_settings

    source = _source(model, tokenizer)
    config, loaded = job_settings(
        str(meta), given, checkpoint=local_settings(model), tokenizer=source
    )
    if num_image_token is not None:
        config = replace(config, encode=replace(config.encode, num_image_token=num_image_token))
    _warn_of_template(loaded, config)
    return config, loaded


def _source(model: Path | None, tokenizer: Path | None) -> Path:
    from internvl_chat.checkpoint.hub import local_model
    from internvl_chat.errors import ConfigError

    source = tokenizer or model
    if source is None:
        raise ConfigError("no tokenizer is named", fix="Give --model DIR or --tokenizer DIR.")
    return Path(local_model(source, "settings"))


def _warn_of_template(tokenizer: Any, config: DataConfig) -> None:
    """Say so where training would refuse the template with this tokenizer."""
    import logging

    from internvl_chat.checkpoint.tokenizer import check_template_tokens
    from internvl_chat.errors import ConfigError

    try:
        check_template_tokens(tokenizer, config.encode.conv_style)
    except ConfigError as err:
        logging.getLogger(__name__).warning("training would refuse this: %s", err)


def _config(
    meta: Path,
    model: Path | None,
    tokenizer: Path | None,
    conv_style: str | None,
    num_image_token: int | None,
    max_seq_length: int,
    force_image_size: int | None,
    video_backend: VideoReader,
) -> tuple[DataConfig, Any]:
    """What the options and the checkpoint say, and the tokenizer as training would have it."""
    from dataclasses import replace

    from internvl_chat.checkpoint.tokenizer import (
        add_special_tokens,
        load_tokenizer,
    )
    from internvl_chat.model.templates import find_template
    from internvl_chat.train.arguments import DataArguments, data_config

    source = _source(model, tokenizer)
    given = {
        "conv_style": conv_style,
        "force_image_size": force_image_size,
        "video_backend": video_backend,
    }
    arguments = DataArguments(
        meta_path=str(meta),
        max_seq_length=max_seq_length,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    config = data_config(
        arguments, num_image_token=num_image_token or _PUBLISHED_TOKENS, meta_path=str(meta)
    )
    if (model := local_settings(model)) is not None:
        config = _as_trained(config, model)
        images, encode = config.media.images, config.encode  # the options go before the checkpoint
        images = replace(images, image_size=force_image_size or images.image_size)
        encode = replace(
            encode,
            conv_style=conv_style or encode.conv_style,
            num_image_token=num_image_token or encode.num_image_token,
        )
        config = replace(config, encode=encode, media=replace(config.media, images=images))
    find_template(config.encode.conv_style)  # an unknown one is found before files are read
    loaded = load_tokenizer(str(source))
    add_special_tokens(loaded)
    _warn_of_template(loaded, config)
    return config, loaded


def _as_trained(config: DataConfig, model: Path) -> DataConfig:
    """The same data seen with a checkpoint's template, tokens and images."""
    from dataclasses import replace

    from internvl_chat.checkpoint.artifacts import normalize_type_of
    from internvl_chat.checkpoint.sources import read_chat_config
    from internvl_chat.config import ImageConfig

    chat = read_chat_config(model)
    images = ImageConfig.of_checkpoint(
        chat,
        normalize_type=normalize_type_of(model),
        decode=config.media.images.decode,  # a run's own: a new checkpoint gets a new rule
    )
    encode = replace(
        config.encode,
        conv_style=chat.template or config.encode.conv_style,
        system_message=getattr(chat, "system_message", None),
        num_image_token=chat.num_image_token,
    )
    return replace(config, encode=encode, media=replace(config.media, images=images))
