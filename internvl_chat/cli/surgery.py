"""The verbs of checkpoint surgery at the command line, thin."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from internvl_chat.checkpoint.surgery.write import Progress

Checkpoint = Annotated[str, typer.Argument(help="Chat checkpoint of any kind.")]
Output = Annotated[str, typer.Argument(help="New directory.")]
Shard = Annotated[str, typer.Option(help="Largest weight file: 5GB, 500MB, ...")]
DType = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; as it is by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Report as a JSON object.")]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


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
    with _progress() as progress:
        report = merge(
            checkpoint,
            output_dir,
            dtype=_dtype(dtype),
            max_shard_bytes=_bytes(max_shard_size),
            check=check,  # type: ignore[arg-type]
            progress=progress,
        )
    text = f"{report.merged} weights merged and checked"
    if report.logits is not None:
        text += (
            f"; logits differ by {report.logits.exact:.1e} (as stored {report.logits.stored:.1e}), "
            f"the adapter moves them by {report.logits.effect:.1e}"
        )
    _tell(text, report, output_dir, as_json)


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

    with _progress() as progress:
        count = take(
            part,
            checkpoint,
            output,
            dtype=_dtype(dtype),
            max_shard_bytes=_bytes(max_shard_size),
            progress=progress,
        )
    _tell(f"{count} tensors written and compared", {"tensors": count}, output, as_json)


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

    with _progress() as progress:
        report = replace(
            checkpoint,
            llm,
            output_dir,
            template=template,
            new_mlp=new_mlp,
            seed=seed,
            dtype=_dtype(dtype),
            max_shard_bytes=_bytes(max_shard_size),
            progress=progress,
        )
    projector = "a new projector" if report.new_projector else "the former projector"
    _tell(f"{report.new_tokens} tokens added, {projector}", report, output_dir, as_json)


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

    with _progress() as progress:
        report = resize(
            checkpoint,
            output_dir,
            image_size,
            dtype=_dtype(dtype),
            max_shard_bytes=_bytes(max_shard_size),
            progress=progress,
        )
    text = (
        f"{report.old_image_size} -> {report.new_image_size} pixels, a tile takes "
        f"{report.num_image_token} tokens"
    )
    _tell(text, report, output_dir, as_json)


def export(
    checkpoint: Checkpoint,
    output_dir: Output,
    layout: Annotated[
        str, typer.Option(help="internvl_chat (as published), or native (transformers' class).")
    ] = "internvl_chat",
    max_shard_size: Shard = "5GB",
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint in another layout, dtype or file size; LoRA weights are merged.

    Example: internvl-chat export work_dirs/my_lora work_dirs/published --dtype bfloat16
    """
    from internvl_chat.checkpoint.surgery.export import export as write

    with _progress() as progress:
        report = write(
            checkpoint,
            output_dir,
            layout=layout,
            dtype=_dtype(dtype),
            max_shard_bytes=_bytes(max_shard_size),
            progress=progress,
        )
    text = f"{report.tensors} tensors written and compared"
    if report.merged:
        text += f", LoRA merged into {report.merged} of them"
    if report.logits is not None:
        text += f"; logits differ by {report.logits:.1e}"
    _tell(text, report, output_dir, as_json)


def _tell(text: str, report: Any, output: str, as_json: bool) -> None:
    if as_json:
        values = report if isinstance(report, dict) else dataclasses.asdict(report)
        typer.echo(json.dumps({"output": output, **values}))
    else:
        typer.echo(f"{output}: {text}.")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?B?)", text.strip().upper())
    unit = match[2] if match else ""
    unit = unit if not unit or unit == "B" or unit.endswith("B") else f"{unit}B"
    size = int(float(match[1]) * _UNITS["" if unit == "B" else unit]) if match else 0
    if size < 1:
        raise ConfigError(
            f"{text!r} is no size", where="--max-shard-size", fix="Write 5GB or 500MB."
        )
    return size


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    known = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name is not None and name not in known:
        raise ConfigError(f"{name!r} is none", where="--dtype", fix=f"Give {', '.join(known)}.")
    return None if name is None else known[name]


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of the models that are loaded for comparison
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
