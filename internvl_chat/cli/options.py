"""What verbs share: their application; options, bar and report of checkpoint surgery."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from internvl_chat.checkpoint.hub import local_model
from internvl_chat.config import default_video_backend
from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from internvl_chat.checkpoint.surgery.write import Progress

Checkpoint = Annotated[str, typer.Argument(help="Chat checkpoint of any kind, or one on the hub.")]
Output = Annotated[str, typer.Argument(help="New directory.")]
Shard = Annotated[str, typer.Option(help="Largest weight file: 5GB, 500MB, ...")]
DType = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; as it is by default.")
]
VideoReader = Annotated[  # config.VideoBackend, spelled out: that module imports torch
    Literal["decord", "pyav", "torchcodec"], typer.Option(help="Library that reads video files.")
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        help="On a GPU: record the steps of an answer once and replay them.",
    ),
]
INSTALLED_VIDEO_READER = default_video_backend()
Json = Annotated[bool, typer.Option("--json", help="Report as a JSON object.")]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


HELP = {"help_option_names": ["-h", "--help"]}


def verb_app(*, has_verbs: bool = False) -> typer.Typer:
    """An application for a verb, as ``internvl-chat`` runs it.

    Args:
        has_verbs: it has verbs of its own, which it shows if it is called without one.
    """
    return typer.Typer(
        no_args_is_help=has_verbs,
        add_completion=False,  # the program's is asked
        pretty_exceptions_enable=False,
        context_settings=HELP,
    )


def local_settings(model: Path | None) -> Path | None:
    """Where configuration and tokenizer of a model lie that may be one on the hub."""
    return None if model is None else Path(local_model(model, "settings"))


def echo_report(text: str, report: Any, output: str, as_json: bool) -> None:
    """Say what was written.

    Args:
        text: for people.
        report: for programs, a dict or a dataclass.
        output: what was written.
        as_json: for programs, on one line.
    """
    if as_json:
        values = report if isinstance(report, dict) else dataclasses.asdict(report)
        typer.echo(json.dumps({"output": output, **values}))
    else:
        typer.echo(f"{output}: {text}.")


@contextmanager
def cleaned_up_when_terminated() -> Iterator[None]:
    """Let a scheduler's SIGTERM end the block as an exception, so that half-written files go."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_size(text: str) -> int:
    """Bytes of ``5GB``, ``500 MB`` or ``7``; units are powers of 1000.

    Raises:
        ConfigError: it is none, or less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?B?)", text.strip().upper())
    unit = match[2] if match else ""
    unit = unit if not unit or unit == "B" or unit.endswith("B") else f"{unit}B"
    size = int(float(match[1]) * _UNITS["" if unit == "B" else unit]) if match else 0
    if size < 1:
        raise ConfigError(
            f"{text!r} is no size", where="--max-shard-size", fix="Write 5GB or 500MB."
        )
    return size


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of that name; None stays None.

    Raises:
        ConfigError: not one that checkpoints are written in.
    """
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
def progress_bar() -> Iterator[Progress]:
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
